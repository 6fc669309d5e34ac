//! Layers of other people's images: a tar is indexed, and unpacked into a directory; an index that lay on the disk is read.
//! Whatever the bytes, both end, agree with each other, and nothing appears beside the directory.
#![no_main]

use snapshotter::layer::{ApplyOptions, LayerIndex, Marks, Ownership, apply, index_tar};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(index) = LayerIndex::decode(data) {
        assert!(LayerIndex::decode(&index.encode()).is_ok());
    }
    let Ok(indexed) = index_tar(data, &|| false) else { return };
    // Holes cost nothing to describe, and much to make.
    if data.is_empty() || indexed.size > 1 << 20 {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dest = dir.path().join("layer");
    std::fs::create_dir(&dest).expect("a directory");
    let options = ApplyOptions { marks: Marks::None, ownership: Ownership::Skip };
    if let Ok(applied) = apply(data, &dest, &options, &|| false) {
        assert_eq!((applied.diff_id, applied.content), (indexed.diff_id, indexed.content));
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 1, "something was written beside the layer");
});
