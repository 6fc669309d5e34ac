//! How long a megabyte of Dockerfile takes: `cargo bench -p rbuild-frontend --bench parse`. A name of a shape behind `--` has
//! only that one parsed; `--profile-time 5` does it for a profiler.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frontend::{SourceFile, parse};

/// What Dockerfiles are made of, each repeated to a megabyte. The first is what most look like; the others are each a kind
/// of line taken to its extreme, so that none hides behind the rest.
const SHAPES: [(&str, &str); 6] = [
    (
        "mixed",
        r#"# syntax of nothing in particular
ENV LANG=C.UTF-8 PATH="/usr/local/bin:$PATH" VERSION=${VERSION:-1.2.3}
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked set -eux; \
    apt-get update; \
    # what the build needs
    apt-get install -y --no-install-recommends \
        build-essential \
        ca-certificates \
        "package=$VERSION"; \
    rm -rf /var/lib/apt/lists/*
COPY --from=build --chown=app:app --chmod=0755 ["target/release/app", "assets/*", "/opt/app/"]
RUN <<EOS
set -e
echo "$VERSION" > /opt/app/version
EOS
LABEL org.example.title="App" org.example.description='An app with a description'
HEALTHCHECK --interval=30s --timeout=5s CMD curl -f http://localhost:8080/health || exit 1
CMD ["/opt/app/app", "--serve"]
"#,
    ),
    ("short", "ENV a=b\nARG c\nRUN d\nCOPY e f\nEXPOSE 80\nUSER g\nWORKDIR /h\nLABEL i=j\n"),
    ("continued", "RUN a-command --with-an-option && \\\n"),
    (
        "here-documents",
        "RUN <<EOS\nset -eux\napt-get update\napt-get install -y curl\nEOS\nCOPY <<one <<\"two\" /etc/\na=1\none\nb=2\ntwo\n",
    ),
    (
        "flags",
        "RUN --mount=type=bind,from=build,source=/out,target=/in,rw --mount=type=secret,id=token,required=true --network=none true\nCOPY --from=build --chown=1:2 --chmod=u=rwX,go=rX --link --parents --exclude=*.o ./a/./b /c/\n",
    ),
    ("comments", "# a comment that says why\n\nRUN true \\\n    # another one\n    && true\n"),
];

/// As `text`, repeated up to a megabyte of whole instructions.
fn megabyte(part: &str) -> SourceFile {
    let mut text = "FROM debian:bookworm-slim\n".to_owned();
    while text.len() < 1 << 20 {
        text.push_str(part);
        // An instruction of 1000 lines, then the next.
        if part.ends_with("\\\n") && text.len() % 20_000 < part.len() {
            text.push_str("    true\n");
        }
    }
    SourceFile::new("Dockerfile", text)
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse 1 MiB");
    for (name, part) in SHAPES {
        let source = megabyte(part);
        group.throughput(Throughput::Bytes(source.text().len() as u64));
        group.bench_function(name, |bencher| {
            // What is parsed is not freed while the clock runs.
            bencher.iter_with_large_drop(|| parse(&source).expect("it is a Dockerfile"));
        });
    }
    group.finish();
}

criterion_group!(benches, parsing);
criterion_main!(benches);
