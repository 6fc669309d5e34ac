//! Names of images: the registry client's parser, the frontend's, and that the two mean the same.
#![no_main]

use std::str::FromStr as _;

use registry::Reference;

#[path = "../entry.rs"]
#[allow(dead_code)]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    entry::reference(data);
    let Ok(name) = std::str::from_utf8(data) else { return };
    let client = Reference::from_str(name).map(Reference::or_latest);
    if let Ok(reference) = &client {
        let full = reference.to_string();
        assert_eq!(Reference::from_str(&full).as_ref(), Ok(reference), "{full:?}");
        assert_eq!(Reference::from_str(&reference.familiar()).map(Reference::or_latest).as_ref(), Ok(reference));
    }
    // What a FROM would expand, split or take for a stage is no name of an image.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./:@_-[]+".contains(&byte);
    if name.is_empty() || name == "scratch" || name.starts_with('-') || !name.bytes().all(plain) {
        return;
    }
    let frontend = entry::image(name);
    match (&client, &frontend) {
        (Ok(client), Some(frontend)) => assert_eq!(&client.to_string(), frontend, "{name:?}"),
        (Ok(client), None) => panic!("{name:?} is {client} to the client and nothing to the frontend"),
        (Err(error), Some(frontend)) => panic!("{name:?} is {frontend} to the frontend: {error}"),
        (Err(_), None) => {}
    }
});
