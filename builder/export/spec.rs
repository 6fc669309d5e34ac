//! `--output`, in the syntax of docker buildx: `type=…,key=value,…`, or a bare destination.

use std::path::PathBuf;

use snapshotter::layer::compress::Compression;

use super::Annotations;
use crate::provenance::ProvenanceSpec;

/// What layers are compressed with unless said otherwise: what every engine reads.
pub const GZIP: Compression = Compression::Gzip { level: 6 };

/// One output of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSpec {
    /// Where the result goes.
    pub kind: OutputKind,
    /// Image names of this output in place of `-t`.
    pub names: Vec<String>,
    /// How layers are stored.
    pub compression: LayerCompression,
    /// OCI media types (the default of this builder); otherwise Docker's.
    pub oci_media_types: bool,
    /// Times of new files later than SOURCE_DATE_EPOCH become it; `None`: if there is one.
    pub rewrite_timestamp: Option<bool>,
    /// In place of SOURCE_DATE_EPOCH, for this output.
    pub epoch: Option<i64>,
    /// The layers of the build become one.
    pub squash: bool,
    /// Annotations of this output.
    pub annotations: Annotations,
    /// Files of each platform in a directory of their own; `None`: if there are several.
    pub platform_split: Option<bool>,
    /// What the store does with an image.
    pub keeping: Keeping,
    /// What is told of how it came about.
    pub provenance: Option<ProvenanceSpec>,
    /// What was asked for and changes nothing, each a sentence.
    pub notes: Vec<String>,
}

impl OutputSpec {
    /// Its layers are others than those of the build.
    pub(crate) fn rewrites(&self) -> bool {
        self.squash || self.rewrite_timestamp == Some(true) || self.epoch.is_some()
    }
}

/// What the store does with an image that is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeping {
    /// It gets its names there.
    pub name: bool,
    /// Its layers are unpacked at once.
    pub unpack: bool,
    /// A name by digest for an image without a name.
    pub dangling_prefix: Option<String>,
    /// A name by digest beside each name.
    pub canonical: bool,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { name: true, unpack: false, dangling_prefix: None, canonical: false }
    }
}

/// How layers of an image output are compressed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerCompression {
    /// For layers that this build made.
    pub algorithm: Compression,
    /// Layers of the base are compressed anew as well.
    pub force: bool,
}

/// The kinds of output.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputKind {
    /// The store of this builder; `push` sends it to its registry as well.
    Image {
        /// Push after building.
        push: bool,
        /// Push without a tag.
        by_digest: bool,
    },
    /// An OCI layout.
    Oci(Destination),
    /// A docker archive, or the engine found when there is no destination.
    Docker(Option<Destination>),
    /// The root file system as one tar.
    Tar(Destination),
    /// The root file system as files.
    Local(PathBuf),
    /// Nothing.
    CacheOnly,
}

impl OutputKind {
    /// Whether it goes to standard output.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        let (Self::Oci(destination) | Self::Docker(Some(destination)) | Self::Tar(destination)) = self else {
            return false;
        };
        *destination == Destination::Stdout
    }
}

/// Where an archive goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
    /// A directory (`tar=false`).
    Directory(PathBuf),
}

/// The text is no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid output {spec:?}: {why}")]
pub struct OutputError {
    spec: String,
    why: String,
}

impl OutputSpec {
    /// Parses the value of one `--output`.
    ///
    /// # Errors
    /// An unknown type or key, a value that cannot be, a missing destination.
    pub fn parse(spec: &str) -> Result<Self, OutputError> {
        parse(spec).map_err(|why| OutputError { spec: spec.to_owned(), why })
    }

    /// The output that `--push`, `--load` or nothing at all stands for.
    #[must_use]
    pub fn of(kind: OutputKind) -> Self {
        Self {
            kind,
            names: Vec::new(),
            compression: LayerCompression { algorithm: GZIP, force: false },
            oci_media_types: true,
            rewrite_timestamp: None,
            epoch: None,
            squash: false,
            annotations: Annotations::default(),
            platform_split: None,
            keeping: Keeping::default(),
            provenance: None,
            notes: Vec::new(),
        }
    }
}

fn parse(spec: &str) -> Result<OutputSpec, String> {
    let mut fields = Fields::split(spec)?;
    let kind = match fields.take("type").as_deref() {
        Some("image") => {
            OutputKind::Image { push: fields.flag("push", false)?, by_digest: fields.flag("push-by-digest", false)? }
        }
        Some("registry") => OutputKind::Image { push: true, by_digest: fields.flag("push-by-digest", false)? },
        Some("oci") => OutputKind::Oci(fields.optional_archive()?.unwrap_or(Destination::Stdout)),
        Some("docker") => OutputKind::Docker(fields.optional_archive()?),
        Some("tar") => OutputKind::Tar(fields.optional_archive()?.unwrap_or(Destination::Stdout)),
        Some("local") => match fields.optional_archive()? {
            Some(Destination::File(path)) => OutputKind::Local(path),
            _ => return Err("type=local needs a directory as dest".into()),
        },
        Some("cacheonly") => OutputKind::CacheOnly,
        Some(other) => {
            return Err(format!(
                "unknown type {other:?}; there are image, registry, oci, docker, tar, local and cacheonly"
            ));
        }
        None => return Err("type= is missing".into()),
    };
    let mut output = OutputSpec::of(kind);
    if matches!(output.kind, OutputKind::Docker(_)) {
        output.oci_media_types = false;
    }
    output.oci_media_types = fields.flag("oci-mediatypes", output.oci_media_types)?;
    output.names = fields.take("name").map(|names| names.split(',').map(str::to_owned).collect()).unwrap_or_default();
    output.compression = fields.compression()?;
    output.rewrite_timestamp = fields.optional_flag("rewrite-timestamp")?;
    output.epoch = fields.epoch()?;
    if matches!(output.kind, OutputKind::Tar(_) | OutputKind::Local(_)) {
        output.platform_split = fields.optional_flag("platform-split")?;
        if let Some(mode) = fields.take("mode").filter(|mode| mode != "copy") {
            return Err(format!("mode={mode:?} is not supported; there is copy, which leaves other files alone"));
        }
    }
    if matches!(output.kind, OutputKind::Image { .. }) {
        output.keeping = Keeping {
            name: fields.flag("store", true)?,
            unpack: fields.flag("unpack", false)?,
            dangling_prefix: fields.take("dangling-name-prefix").filter(|prefix| !prefix.is_empty()),
            canonical: fields.flag("name-canonical", false)?,
        };
        if fields.flag("registry.insecure", false)? {
            let how = "insecure = true under [registry.\"HOST\"] in the configuration file says that of a registry";
            return Err(format!("registry.insecure is not taken here: {how}"));
        }
    }
    output.annotations = fields.annotations()?;
    output.notes = fields.without_effect()?;
    fields.end()?;
    Ok(output)
}

/// The keys of one specification.
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    fn split(spec: &str) -> Result<Self, String> {
        if spec == "-" {
            return Ok(Self::of(&[("type", "tar"), ("dest", "-")]));
        }
        let fields = csv(spec)?;
        if let [only] = fields.as_slice()
            && !only.contains('=')
        {
            return Ok(Self::of(&[("type", "local"), ("dest", only)]));
        }
        Self::pairs(&fields)
    }

    /// `key=value` each.
    pub(crate) fn pairs(fields: &[String]) -> Result<Self, String> {
        let pair = |field: &String| {
            let (key, value) = field.split_once('=').ok_or_else(|| format!("{field:?} is not key=value"))?;
            let key = key.trim();
            // Of an annotation's key the case counts.
            let end = if key.to_ascii_lowercase().starts_with("annotation") { key.find('.') } else { None };
            let (name, rest) = key.split_at(end.unwrap_or(key.len()));
            Ok((name.to_ascii_lowercase() + rest, value.to_owned()))
        };
        fields.iter().map(pair).collect::<Result<_, String>>().map(Self)
    }

    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let position = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(position).1)
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> Result<bool, String> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    fn optional_flag(&mut self, key: &str) -> Result<Option<bool>, String> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("" | "1" | "true" | "True" | "TRUE" | "t" | "T") => Ok(Some(true)),
            Some("0" | "false" | "False" | "FALSE" | "f" | "F") => Ok(Some(false)),
            Some(other) => Err(format!("{key}={other:?} is neither true nor false")),
        }
    }

    fn optional_archive(&mut self) -> Result<Option<Destination>, String> {
        let tar = self.flag("tar", true)?;
        let dest = self.take("dest");
        match (dest.as_deref(), tar) {
            (None, true) => Ok(None),
            (None, false) => Err("tar=false needs a directory as dest".into()),
            (Some(""), _) => Err("dest is empty".into()),
            (Some("-"), true) => Ok(Some(Destination::Stdout)),
            (Some("-"), false) => Err("a directory cannot go to standard output".into()),
            (Some(path), true) => Ok(Some(Destination::File(path.into()))),
            (Some(path), false) => Ok(Some(Destination::Directory(path.into()))),
        }
    }

    pub(crate) fn compression(&mut self) -> Result<LayerCompression, String> {
        let force = self.flag("force-compression", false)?;
        let level = self.take("compression-level");
        let number = |default: i32, most: i32| match &level {
            None => Ok(default),
            Some(text) => text
                .parse()
                .ok()
                .filter(|level| (0..=most).contains(level))
                .ok_or_else(|| format!("compression-level={text:?} is not a number from 0 to {most}")),
        };
        let algorithm = match self.take("compression").as_deref() {
            None | Some("gzip") => Compression::Gzip { level: u32::try_from(number(6, 9)?).unwrap_or(6) },
            Some("zstd") => Compression::Zstd { level: number(3, 22)? },
            Some("uncompressed") => Compression::None,
            Some("estargz") => {
                return Err("compression=estargz is not supported; gzip and zstd layers work wherever it does".into());
            }
            Some(other) => {
                return Err(format!("compression={other:?} is not supported; there are gzip, zstd and uncompressed"));
            }
        };
        Ok(LayerCompression { algorithm, force })
    }

    fn epoch(&mut self) -> Result<Option<i64>, String> {
        let Some(text) = self.take("source-date-epoch").filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("source-date-epoch={text:?} is not a number of seconds"))
    }

    fn annotations(&mut self) -> Result<Annotations, String> {
        let mut annotations = Annotations::default();
        let mut others = Vec::with_capacity(self.0.len());
        for (key, value) in std::mem::take(&mut self.0) {
            if !annotations.take(&key, &value)? {
                others.push((key, value));
            }
        }
        self.0 = others;
        Ok(annotations)
    }

    /// Keys that others know and that ask for what is the case anyway, or means nothing any more.
    fn without_effect(&mut self) -> Result<Vec<String>, String> {
        let mut notes = Vec::new();
        for key in ["buildinfo", "buildinfo-attrs"] {
            if self.take(key).is_some() {
                notes.push(format!("{key} of --output is ignored: images hold no build information"));
            }
        }
        for key in ["prefer-nondist-layers", "oci-artifact", "attestation-inline"] {
            if self.flag(key, false)? {
                return Err(format!("{key} is not supported"));
            }
        }
        Ok(notes)
    }

    pub(crate) fn end(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{key:?} is not known here, or given twice")),
        }
    }
}

/// One line of comma-separated fields, quoted as in RFC 4180.
pub(crate) fn csv(line: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        let field = fields.last_mut().expect("there is always a field");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    if quoted { Err("a quote is not closed".into()) } else { Ok(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_parsed_as_buildx_does() {
        let kind = |spec: &str| OutputSpec::parse(spec).unwrap().kind;
        assert_eq!(kind("out"), OutputKind::Local("out".into()));
        assert_eq!(kind("-"), OutputKind::Tar(Destination::Stdout));
        assert_eq!(kind("type=oci,dest=a.tar"), OutputKind::Oci(Destination::File("a.tar".into())));
        assert_eq!(kind("type=oci,tar=false,dest=a"), OutputKind::Oci(Destination::Directory("a".into())));
        assert_eq!(kind("type=docker"), OutputKind::Docker(None));
        // As in a shell: `-o type=tar . >root.tar`.
        assert_eq!(kind("type=tar"), OutputKind::Tar(Destination::Stdout));
        assert_eq!(kind("type=oci"), OutputKind::Oci(Destination::Stdout));
        assert_eq!(kind("type=registry"), OutputKind::Image { push: true, by_digest: false });
        let named =
            OutputSpec::parse("type=image,\"name=a:1,b:2\",push=true,compression=zstd,compression-level=9").unwrap();
        assert_eq!(named.names, ["a:1", "b:2"]);
        assert_eq!(named.compression.algorithm, Compression::Zstd { level: 9 });
        let keys = "type=image,name=a,store=false,unpack=true,name-canonical=true,rewrite-timestamp=false,\
                    annotation.Org.X=1,buildinfo=true,source-date-epoch=7,dangling-name-prefix=none";
        let kept = OutputSpec::parse(keys).unwrap();
        let keeping = Keeping { name: false, unpack: true, dangling_prefix: Some("none".into()), canonical: true };
        assert_eq!(kept.keeping, keeping);
        assert_eq!((kept.rewrite_timestamp, kept.epoch, kept.notes.len()), (Some(false), Some(7), 1));
        let manifest = super::super::AnnotationPlace::Manifest;
        assert_eq!(kept.annotations.at(manifest, None).into_keys().collect::<Vec<_>>(), ["Org.X"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (spec, why) in [
            ("type=local", "needs a directory"),
            ("type=iso,dest=x", "unknown type"),
            ("dest=x", "type= is missing"),
            ("type=tar,dest=x,colour=red", "\"colour\" is not known"),
            ("type=image,push=maybe", "neither true nor false"),
            ("type=image,compression=gzip,compression-level=10", "from 0 to 9"),
            ("type=image,\"name=a", "quote"),
            ("type=image,compression=estargz", "estargz is not supported"),
            ("type=local,dest=x,mode=delete", "not supported"),
            ("type=tar,dest=-,platform-split=perhaps", "neither true nor false"),
            ("type=oci,dest=x,annotation-layer.a=b", "no place"),
            ("type=oci,dest=x,unpack=true", "\"unpack\" is not known"),
            ("type=image,registry.insecure=true", "configuration file"),
            ("type=oci,dest=x,source-date-epoch=now", "number of seconds"),
        ] {
            let error = OutputSpec::parse(spec).unwrap_err().to_string();
            assert!(error.contains(why), "{spec}: {error}");
        }
    }
}
