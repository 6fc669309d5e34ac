//! `# syntax=`: which frontend is to read the file.
//!
//! BuildKit starts an image for it. There is one frontend here, which stands for all versions of Docker's own; what is
//! written for any other cannot be read.

use crate::image_name;
use crate::lines::detect_syntax;
use crate::{Diagnostic, Options, SourceFile, Span};

/// Docker's frontend, and its builds of every change.
const OWN: [&str; 2] = ["docker/dockerfile", "docker/dockerfile-upstream"];

/// Refuses a file that asks for a frontend which is not there. The build argument `BUILDKIT_SYNTAX` goes before the
/// directive.
pub(crate) fn check(source: &SourceFile, options: &Options) -> Result<(), Diagnostic> {
    const ARGUMENT: &str = "BUILDKIT_SYNTAX";
    let hint =
        "only docker/dockerfile and docker/dockerfile-upstream can be used: they are built in, in their newest version";
    if let Some(given) = options.build_args.get(ARGUMENT).filter(|given| !given.is_empty()) {
        let image = given.split(' ').next().unwrap_or_default();
        if is_own(image) {
            return Ok(());
        }
        let message = format!("the frontend {image} ({ARGUMENT}) is not available");
        return Err(Diagnostic::new(Span::default(), message).with_hint(hint));
    }
    match detect_syntax(source) {
        Some(syntax) if !is_own(&syntax.image) => {
            let message = format!("the frontend {} (# syntax=) is not available", syntax.image);
            Err(Diagnostic::new(syntax.span, message).with_hint(hint))
        }
        _ => Ok(()),
    }
}

/// Whether a reference means Docker's frontend, whatever its tag or digest, and whichever registry has a copy of it.
fn is_own(image: &str) -> bool {
    let Ok(full) = image_name::normalise(image) else { return false };
    let path = full.split('@').next().unwrap_or_default();
    let Some((_host, path)) = path.split_once('/') else { return false };
    let path = path.split(':').next().unwrap_or_default();
    OWN.iter().any(|own| path == *own || path.strip_suffix(own).is_some_and(|prefix| prefix.ends_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends() {
        let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for image in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker/dockerfile:1.7-labs",
            "docker/dockerfile:labs",
            "docker.io/docker/dockerfile:1",
            "index.docker.io/docker/dockerfile",
            "docker/dockerfile-upstream:master-labs",
            "mirror.example:5000/docker/dockerfile:1",
            "registry.example/hub/docker/dockerfile:1",
            &format!("docker/dockerfile@{digest}"),
            &format!("docker/dockerfile:1@{digest}"),
        ] {
            assert!(is_own(image), "{image}");
        }
        for image in
            ["dockerfile", "docker/dockerfile-copy", "me/dockerfile", "mydocker/dockerfile", "Docker/dockerfile", ""]
        {
            assert!(!is_own(image), "{image}");
        }
        let problem = |text: &str, argument: Option<&str>| {
            let build_args = argument.map(|given| ("BUILDKIT_SYNTAX".to_owned(), given.to_owned()));
            let options = Options { build_args: build_args.into_iter().collect(), ..Options::default() };
            check(&SourceFile::new("Dockerfile", text), &options)
                .err()
                .map(|problem| (problem.span.start(), problem.message))
        };
        assert_eq!(problem("FROM a", None), None);
        assert_eq!(problem("# syntax=docker/dockerfile:1 # x", None), None);
        let refused = "the frontend a/b (# syntax=) is not available".to_owned();
        assert_eq!(problem("# check=skip=all\n# syntax=a/b\nFROM a", None), Some((17, refused)));
        assert!(problem("#syntax=a/b\nFROM a", Some("docker/dockerfile:1")).is_none());
        assert!(problem("FROM a", Some("a/b")).is_some());
    }
}
