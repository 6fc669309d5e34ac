//! Matching of .dockerignore: `cargo bench -p rbuild-frontend --bench ignore`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frontend::dockerignore::Patterns;

const RULES: &str = "\
.git\n**/node_modules\n**/*.log\n*.md\n!README.md\nbuild/\ndist/**\n**/.cache\nsrc/**/tests/fixtures\n!src/core/tests/fixtures/keep\n\
tmp*\n**/__pycache__\n*.swp\n**/target\n.env*\n";

fn matching(criterion: &mut Criterion) {
    let patterns = Patterns::parse(RULES).expect("they are patterns");
    let paths: Vec<String> = (0..10_000).map(|n| format!("src/part{}/module{}/file{n}.rs", n / 500, n / 50)).collect();
    let mut group = criterion.benchmark_group("dockerignore");
    group.throughput(Throughput::Elements(paths.len() as u64));
    group.bench_function("15 rules, path by path", |bencher| {
        bencher.iter(|| paths.iter().filter(|path| patterns.test(path).ignored).count());
    });
    group.finish();
}

criterion_group!(benches, matching);
criterion_main!(benches);
