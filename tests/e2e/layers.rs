//! What ends in a layer, and what comes out of it again.

use std::collections::BTreeMap;

use crate::support::{Context, Image, Layout, TestEnv};

#[track_caller]
fn exported(env: &TestEnv, context: &Context, args: &[&str]) -> Image {
    let out = env.path(format!("{}.tar", std::fs::read_dir(env.dir()).expect("ours").count()));
    env.build(context, &["-o", &format!("type=oci,dest={}", out.display())]).args(args).ok();
    Layout::from_archive(&out).image()
}

fn paths(image: &Image, layer: usize) -> Vec<&str> {
    image.layers[layer].iter().map(|e| e.path.trim_end_matches('/')).filter(|p| !p.is_empty() && *p != ".").collect()
}

#[test]
pub(crate) fn a_layer_holds_what_the_step_changed() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\nRUN mkdir -p /a/b && echo 1 > /a/b/c && rm /etc/group && ln -s c /a/b/s && ln /a/b/c /a/b/h && touch /etc/passwd\n\
                RUN rm -r /a/b && mkdir /a/b && echo 2 > /a/b/d\nRUN true\n";
    let image = exported(&env, &env.dockerfile("c", text), &[]);
    assert_eq!(paths(&image, 1), ["a", "a/b", "a/b/c", "a/b/h", "a/b/s", "etc", "etc/.wh.group", "etc/passwd"]);
    let hard = image.find("a/b/h").expect("listed");
    assert_eq!((hard.kind, hard.link.as_deref()), (tar::EntryType::Link, Some("a/b/c")));
    let second = paths(&image, 2);
    assert!(
        second.contains(&"a/b/d") && (second.contains(&"a/b/.wh..wh..opq") || second.contains(&"a/b/.wh.c")),
        "{second:?}"
    );
    assert_eq!(
        image.layers[3].iter().filter(|e| e.path.trim_end_matches('/').len() > 1).count(),
        0,
        "nothing changed: {:?}",
        paths(&image, 3)
    );
}

#[test]
pub(crate) fn of_the_mount_points_made_for_a_step_only_the_standard_ones_stay() {
    let env = TestEnv::busybox();
    // Engines that run an image read-only need /proc, /sys and /dev to be there.
    let text = "FROM scratch\nCOPY --from=busybox /bin/busybox /bin/sh\n\
                RUN --mount=type=tmpfs,target=/t/u --mount=type=cache,target=/c true\n";
    let image = exported(&env, &env.dockerfile("c", text), &[]);
    assert_eq!(paths(&image, 1), ["dev", "proc", "sys"]);
}

#[test]
pub(crate) fn odd_files_survive_into_the_image_and_through_a_load() {
    let env = TestEnv::busybox();
    let long = "n".repeat(200);
    let text = format!(
        "FROM busybox\nRUN mkdir -p /o/{long}/{long} && cd /o && echo deep > {long}/{long}/f && touch 'sp ace' \"$(printf 'new\\nline')\" \"$(printf '\\303\\244')\" \"$(printf 'latin\\344')\" -- && \
         mkfifo fifo && touch suid && chmod 6755 suid && mkdir sticky && chmod 1777 sticky && ln -s /no/where dangling && ln -s ../../../../x up && \
         ln -s \"$(printf 't%.0s' $(seq 1 180))\" longlink && chown 123456:654321 suid && chmod 6755 suid && truncate -s 3M sparse && touch -d '1999-12-31 23:59:59' old && mkdir empty\n"
    );
    let context = env.dockerfile("c", &text);
    env.build(&context, &["-t", "odd"]).ok();
    let list = "cd /o && find . | sort | while IFS= read -r f; do stat -c '%n %a %u:%g %F %s' \"$f\" 2>/dev/null; readlink \"$f\"; done; stat -c %Y old; cat */*/f";
    let here = env.run("odd", &["sh", "-c", list]).ok().stdout_bytes;
    let text = String::from_utf8_lossy(&here);
    for part in [
        "./suid 6755 123456:654321",
        "./sticky 1777",
        "./fifo",
        "fifo 0",
        "/no/where",
        "../../../../x",
        "./sparse 644 0:0 regular file 3145728",
        "946684799",
        "deep",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let tar = env.path("odd.tar");
    env.rbuild(["save", "-o"]).arg(&tar).arg("odd").ok();
    let other = TestEnv::new();
    other.rbuild(["load", "-i"]).arg(&tar).ok();
    let there = other.run("odd", &["sh", "-c", list]).ok().stdout_bytes;
    assert_eq!(String::from_utf8_lossy(&here), String::from_utf8_lossy(&there));
}

#[test]
pub(crate) fn extended_attributes_and_capabilities_survive() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nCOPY f /f\nRUN cp /f /g\n").mode("f", 0o755, "x");
    // cap_net_bind_service=ep as the kernel stores it; the caller may not be allowed to set it.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(context.path("f"), "user.colour", b"blue", flags)
        .expect("the file system has user attributes");
    let capable = rustix::fs::setxattr(context.path("f"), "security.capability", &capability, flags).is_ok();
    let image = exported(&env, &context, &[]);
    let pax = &image.find("f").expect("copied").pax;
    assert_eq!(pax.get("SCHILY.xattr.user.colour").map(Vec::as_slice), Some(&b"blue"[..]), "{pax:?}");
    if capable {
        assert_eq!(pax.get("SCHILY.xattr.security.capability").map(Vec::as_slice), Some(&capability[..]), "{pax:?}");
    }
}

/// Owners, device nodes, setuid bits and file capabilities of a base, and what a step changes beside and of them.
#[test]
pub(crate) fn what_the_disk_cannot_hold_comes_out_right() {
    use tar::EntryType::{Block, Char, Fifo, Regular};
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let wanted = [
        ("d/null", Char, 0o666, (0, 0), Some((1, 3))),
        ("d/disk", Block, 0o660, (0, 6), Some((8, 1))),
        ("d/pipe", Fifo, 0o622, (33, 0), None),
        ("d/suid", Regular, 0o4711, (33, 44), None),
        ("d/nobody", Regular, 0o2755, (65534, 65534), None),
        ("d/capable", Regular, 0o755, (0, 0), None),
    ];
    let env = TestEnv::new();
    let mut base = std::fs::read(crate::support::busybox_base().tar).expect("made by the harness");
    // It goes on where its end was.
    base.truncate(base.len() - 1024);
    let length = base.len() as u64;
    let mut base = tar::Builder::new(std::io::Cursor::new(base));
    base.get_mut().set_position(length);
    for (path, kind, mode, (uid, gid), numbers) in wanted {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(0);
        if let Some((major, minor)) = numbers {
            header
                .set_device_major(major)
                .and_then(|()| header.set_device_minor(minor))
                .expect("a header with devices");
        }
        if path == "d/capable" {
            base.append_pax_extensions([("SCHILY.xattr.security.capability", &capability[..])])
                .expect("memory takes it");
        }
        base.append_data(&mut header, path, std::io::empty()).expect("memory takes it");
    }
    let tar = env.path("base.tar");
    std::fs::write(&tar, base.into_inner().expect("memory takes it").into_inner()).expect("ours");
    env.rbuild(["import"]).arg(&tar).arg("base").ok();
    let text = "FROM base\nRUN echo more >> /d/nobody && chmod 2755 /d/nobody && chmod 777 /d && touch /d/new\n";
    let (context, out) = (env.dockerfile("c", text), env.path("out.tar"));
    env.build(&context, &["-o", &format!("type=tar,dest={}", out.display())]).ok();
    let entries = crate::support::entries(&std::fs::read(out).expect("written"));
    for (path, kind, mode, owner, numbers) in wanted {
        let found = entries.iter().find(|entry| entry.path == path).unwrap_or_else(|| panic!("{path} is gone"));
        let is = (found.kind, found.mode & 0o7777, (found.uid, found.gid), found.numbers);
        assert_eq!(is, (kind, mode, owner, numbers), "{path}");
    }
    let capable = entries.iter().find(|entry| entry.path == "d/capable").expect("checked");
    assert_eq!(capable.pax.get("SCHILY.xattr.security.capability").map(Vec::as_slice), Some(&capability[..]));
    assert!(entries.iter().any(|entry| entry.path == "d/new" && (entry.uid, entry.gid) == (0, 0)));
}

#[test]
pub(crate) fn the_same_context_makes_the_same_layers_in_another_store() {
    let text = "FROM busybox\nCOPY . /src/\nCOPY --chown=1:2 a /owned\nWORKDIR /src\n";
    let layers = |name: &str| {
        let env = TestEnv::busybox();
        let context = env.dockerfile(name, text).file("a", "a").file("d/b", "b").link("l", "a");
        for file in ["Dockerfile", "a", "d/b", "d", "l", "."] {
            context.touch(file, 1_600_000_000);
        }
        let image = exported(&env, &context, &["--build-arg", "SOURCE_DATE_EPOCH=1600000000"]);
        (image.layer_digests(), image.config["rootfs"].clone())
    };
    assert_eq!(layers("one"), layers("two"));
}

#[test]
fn files_of_one_layer_come_back_byte_for_byte() {
    let env = TestEnv::busybox();
    let mut context = env.dockerfile("c", "FROM busybox\nCOPY . /all/\nRUN cp -a /all /copied\n");
    let mut expected = BTreeMap::new();
    let mut state = 7_u32;
    for n in 0..60_usize {
        // Sizes around the borders of tar blocks and buffers.
        let size = [0, 1, 511, 512, 513, 4095, 4096, 65535, 65536, 65537, 1 << 20][n % 11];
        let bytes: Vec<u8> = (0..size)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        let name = format!("d{}/f{n}", n % 7);
        context = context.file(&name, &bytes);
        expected.insert(name, bytes);
    }
    let dest = env.path("rootfs");
    env.build(&context, &["-o", dest.to_str().expect("UTF-8")]).ok();
    for (name, bytes) in expected {
        for place in ["all", "copied"] {
            let found = std::fs::read(dest.join(place).join(&name)).unwrap_or_else(|e| panic!("{place}/{name}: {e}"));
            assert!(found == bytes, "{place}/{name} differs");
        }
    }
}
