//! How long a megabyte of Dockerfile takes: `cargo bench -p rbuild-frontend --bench parse`.

use std::time::{Duration, Instant};

use frontend::{SourceFile, parse};

/// What Dockerfiles are made of: long RUNs over many lines, comments, COPY, ENV, a here-document.
const PART: &str = r#"# syntax of nothing in particular
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
RUN <<EOF
set -e
echo "$VERSION" > /opt/app/version
EOF
LABEL org.example.title="App" org.example.description='An app with a description'
HEALTHCHECK --interval=30s --timeout=5s CMD curl -f http://localhost:8080/health || exit 1
CMD ["/opt/app/app", "--serve"]
"#;

#[expect(clippy::print_stdout, reason = "the time is what a benchmark is for")]
fn main() {
    let mut text = "FROM debian:bookworm-slim\n".to_owned();
    while text.len() < 1 << 20 {
        text.push_str(PART);
    }
    let source = SourceFile::new("Dockerfile", text);
    let mut times: Vec<Duration> = (0..30)
        .map(|_| {
            let start = Instant::now();
            let file = parse(&source).expect("it is a Dockerfile");
            let time = start.elapsed();
            assert!(file.instructions.len() > 1000);
            time
        })
        .collect();
    times.sort_unstable();
    println!(
        "parsing 1 MiB: median {:.1} ms, best {:.1} ms (30 runs)",
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[0].as_secs_f64() * 1e3
    );
}
