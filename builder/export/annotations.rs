//! Annotations of what is exported (image-spec, annotations.md), as `--annotation` and the keys of `--output` give them.

use std::collections::BTreeMap;

use graph::Platform;

/// Where an annotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnnotationPlace {
    /// In the manifests.
    Manifest,
    /// In the index.
    Index,
    /// Where the index names a manifest, or an OCI layout the only one.
    ManifestDescriptor,
    /// Where an OCI layout names the index.
    IndexDescriptor,
}

/// Annotations by place and platform.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations(Vec<Annotation>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Annotation {
    place: AnnotationPlace,
    /// `None`: whatever the platform.
    platform: Option<Platform>,
    key: String,
    value: String,
}

impl AnnotationPlace {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "manifest" => Self::Manifest,
            "index" => Self::Index,
            "manifest-descriptor" => Self::ManifestDescriptor,
            "index-descriptor" => Self::IndexDescriptor,
            _ => return None,
        })
    }
}

impl Annotations {
    /// Parses the value of one `--annotation`: `[PLACE[,PLACE…]:]KEY=VALUE`, with `PLACE[PLATFORM]` for one platform only.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = |why: &str| format!("--annotation {text:?}: {why}");
        let (key, value) = text.split_once('=').ok_or_else(|| invalid("it is not KEY=VALUE"))?;
        let (places, key) = match key.split_once(':') {
            // What no place can look like belongs to the key.
            Some((places, key)) if places.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_[],/".contains(&b)) => {
                (places, key)
            }
            _ => ("manifest", key),
        };
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(invalid("it has no key"));
        }
        let mut parsed = Self::default();
        for place in places.split(',') {
            let (place, platform) = scope(place).map_err(|why| invalid(&why))?;
            parsed.0.push(Annotation { place, platform, key: key.to_owned(), value: value.to_owned() });
        }
        Ok(parsed)
    }

    /// Takes one key of an output if it is an annotation's: `annotation.KEY`, `annotation-PLACE.KEY`,
    /// `annotation-PLACE[PLATFORM].KEY`. Whether it was.
    ///
    /// # Errors
    /// It is one, and wrong.
    pub fn take(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let Some(rest) = key.strip_prefix("annotation") else { return Ok(false) };
        let (scoped, name) = match rest.strip_prefix('-') {
            None => ("manifest", rest.strip_prefix('.')),
            Some(rest) => match rest.find(']').map(|end| rest.split_at(end + 1)) {
                Some((scoped, name)) => (scoped, name.strip_prefix('.')),
                None => rest.split_once('.').map_or((rest, None), |(scoped, name)| (scoped, Some(name))),
            },
        };
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| format!("{key:?} names no annotation"))?;
        let (place, platform) = scope(scoped)?;
        self.0.push(Annotation { place, platform, key: name.to_owned(), value: value.to_owned() });
        Ok(true)
    }

    /// Adds those of `other`, which win.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }

    /// What stands at a place, for a platform where the place has one.
    #[must_use]
    pub fn at(&self, place: AnnotationPlace, platform: Option<&Platform>) -> BTreeMap<String, String> {
        let here = |annotation: &&Annotation| {
            annotation.place == place
                && annotation.platform.as_ref().is_none_or(|wanted| platform.is_none_or(|platform| wanted == platform))
        };
        self.0.iter().filter(here).map(|annotation| (annotation.key.clone(), annotation.value.clone())).collect()
    }

    /// Whether there is any for an index, which an image for one platform does not have.
    #[must_use]
    pub fn need_index(&self) -> bool {
        self.0.iter().any(|a| matches!(a.place, AnnotationPlace::Index | AnnotationPlace::IndexDescriptor))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `PLACE` or `PLACE[PLATFORM]`.
fn scope(text: &str) -> Result<(AnnotationPlace, Option<Platform>), String> {
    let (name, platform) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        Some((name, platform)) => (name, Some(platform.parse::<Platform>().map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    let place = AnnotationPlace::named(name).ok_or_else(|| {
        format!(
            "{name:?} is no place for annotations; there are manifest, index, manifest-descriptor, index-descriptor"
        )
    })?;
    if platform.is_some() && matches!(place, AnnotationPlace::Index | AnnotationPlace::IndexDescriptor) {
        return Err("an index is for all platforms".into());
    }
    Ok((place, platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_platforms_are_told_apart() {
        use AnnotationPlace as P;
        let amd64: Platform = "linux/amd64".parse().unwrap();
        let arm64: Platform = "linux/arm64".parse().unwrap();
        let mut all = Annotations::default();
        for text in ["a=1", "index,manifest:b=2=2", "manifest-descriptor[linux/amd64]:c=", "org.x:y=4"] {
            all.extend(&Annotations::parse(text).unwrap());
        }
        let keys = |place, platform| all.at(place, platform).into_keys().collect::<Vec<_>>();
        assert_eq!(keys(P::Manifest, Some(&amd64)), ["a", "b", "org.x:y"]);
        assert_eq!(keys(P::Index, None), ["b"]);
        assert_eq!(keys(P::ManifestDescriptor, Some(&amd64)), ["c"]);
        assert!(keys(P::ManifestDescriptor, Some(&arm64)).is_empty());
        assert_eq!(all.at(P::Index, None)["b"], "2=2");
        assert!(all.need_index());
    }

    #[test]
    fn keys_of_outputs_are_read() {
        use AnnotationPlace as P;
        let mut all = Annotations::default();
        assert!(!all.take("compression", "gzip").unwrap());
        for key in ["annotation.Org.A", "annotation-manifest[linux/arm/v7].b", "annotation-index-descriptor.c.d"] {
            assert!(all.take(key, "x").unwrap(), "{key}");
        }
        assert_eq!(all.at(P::Manifest, Some(&"linux/arm/v7".parse().unwrap())).len(), 2);
        assert_eq!(all.at(P::Manifest, Some(&Platform::host())).into_keys().collect::<Vec<_>>(), ["Org.A"]);
        assert_eq!(all.at(P::IndexDescriptor, None)["c.d"], "x");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for text in ["a", "=x", "layer:a=1", "index[linux/amd64]:a=1", "manifest[a b]:x=1", "manifest:=1"] {
            // A place with a blank in it is part of the key, which has none.
            assert!(Annotations::parse(text).is_err(), "{text}");
        }
        for key in ["annotation", "annotation.", "annotation-layer.a", "annotation-manifest[x"] {
            assert!(Annotations::default().take(key, "v").is_err(), "{key}");
        }
    }
}
