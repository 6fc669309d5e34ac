//! Settings of an imported image, written as instructions of a Dockerfile and carried out by the same code.

use frontend::{Diagnostics, Images, Options, SourceFile, lower, parse_trigger, plan};
use graph::Platform;
use graph::image::RunConfig;

/// What a change may be: all that only changes the config.
const ALLOWED: [&str; 11] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A change that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Not one of ours.
    #[error(
        "--change {0:?}: only CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR can be changed"
    )]
    NotAllowed(String),
    /// Not well-formed.
    #[error("--change {text:?}")]
    Malformed {
        /// As given.
        text: String,
        /// What is wrong with it.
        #[source]
        problems: Diagnostics,
    },
}

/// Checked changes, carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes(RunConfig);

impl Changes {
    /// Carries out the instructions on the settings of an empty image.
    ///
    /// # Errors
    /// One is malformed or does more than change the config.
    pub fn parse(texts: &[String], platform: &Platform) -> Result<Self, ChangeError> {
        let mut dockerfile = "FROM scratch\n".to_owned();
        for text in texts {
            let malformed = |problems| ChangeError::Malformed { text: text.clone(), problems };
            let source = SourceFile::new("--change", text.as_str());
            let instruction = parse_trigger(&source).map_err(malformed)?;
            let keyword = instruction.keyword.text.to_ascii_uppercase();
            if !ALLOWED.contains(&keyword.as_str()) {
                return Err(ChangeError::NotAllowed(text.clone()));
            }
            // By itself first, so that a refusal is about this one and in its own lines.
            carry_out(&format!("FROM scratch\n{text}\n"), platform).map_err(malformed)?;
            dockerfile.push_str(text);
            dockerfile.push('\n');
        }
        let settings = carry_out(&dockerfile, platform);
        settings.map(Self).map_err(|problems| ChangeError::Malformed { text: texts.join("; "), problems })
    }

    /// The settings that came out.
    #[must_use]
    pub fn settings(&self) -> RunConfig {
        self.0.clone()
    }
}

fn carry_out(dockerfile: &str, platform: &Platform) -> Result<RunConfig, Diagnostics> {
    let options = Options { target_platform: platform.clone(), implicit_platform: false, ..Options::default() };
    let plan = plan(&SourceFile::new("--change", dockerfile), &options)?;
    Ok(lower(&plan, &Images::new())?.config.config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<RunConfig, ChangeError> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        Changes::parse(&texts, &Platform::host()).map(|changes| changes.settings())
    }

    #[test]
    fn settings_are_those_of_a_dockerfile() {
        let texts = [
            "ENV A=1",
            "env B=$A/2",
            "CMD [\"sh\", \"-l\"]",
            "EXPOSE 80",
            "LABEL x=\"y z\"",
            "WORKDIR /srv",
            "USER me",
        ];
        let config = parse(&texts).unwrap();
        assert!(config.env.contains(&"B=1/2".to_owned()), "{:?}", config.env);
        assert_eq!(config.cmd, Some(vec!["sh".to_owned(), "-l".to_owned()]));
        assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["80/tcp"]);
        assert_eq!(config.labels["x"], "y z");
        assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/srv", "me"));
        assert!(parse(&[]).unwrap().cmd.is_none());
    }

    #[test]
    fn nothing_else_can_be_changed() {
        for text in ["RUN true", "COPY a b", "ADD a b", "ARG x", "SHELL [\"a\"]", "MAINTAINER me"] {
            assert!(matches!(parse(&[text]), Err(ChangeError::NotAllowed(_))), "{text}");
        }
        for text in ["FROM x", "NONSENSE", "", "ENV A=1\nRUN true", "ENV", "WORKDIR /a\nFROM x", "ONBUILD FROM x"] {
            assert!(matches!(parse(&[text]), Err(ChangeError::Malformed { .. })), "{text:?}");
        }
    }
}
