//! What registries and layouts serve as JSON: manifests, indexes, configs. Whatever the bytes, there is an answer; a config
//! that was read is written so that it is read as the same.
#![no_main]

use graph::ImageConfig;
use registry::Manifest;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for media_type in ["", "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.v2+json"] {
        let _ = Manifest::parse(media_type, data);
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(data) {
        let _ = config.platform().to_string();
        let written = serde_json::to_vec(&config).expect("what was read can be written");
        let again: ImageConfig = serde_json::from_slice(&written).expect("what was written can be read");
        assert_eq!(again, config);
    }
});
