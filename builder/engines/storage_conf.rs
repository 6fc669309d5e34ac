//! Where a user's podman has its images: `storage.conf`, its variables and its defaults, as github.com/containers/storage reads
//! them (`types/options.go` there). Files do not add to each other, but the machine's says where the storages of users are.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Storage;

const NAME: &str = "containers/storage.conf";

#[derive(Deserialize, Default)]
struct File {
    #[serde(default)]
    storage: Conf,
}

/// `storage.conf`, as far as it says where images are.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Conf {
    driver: String,
    graphroot: String,
    imagestore: String,
    rootless_storage_path: String,
    options: Options,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Options {
    additionalimagestores: Vec<String>,
}

impl Storage {
    /// The storages of this user, in the order in which podman looks into them. `machine` is the root directory.
    pub(crate) fn of_user(machine: &Path, is_root: bool, var: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        let get = |name: &str| var(name).filter(|value| !value.is_empty());
        let home = get("HOME").map(PathBuf::from);
        let under_home =
            |xdg: &str, otherwise: &str| get(xdg).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(otherwise)));
        let named = get("CONTAINERS_STORAGE_CONF").map(PathBuf::from);
        let shared = named.clone().or_else(|| {
            let of_xdg = get("XDG_CONFIG_HOME").map(|dir| PathBuf::from(dir).join(NAME));
            let of_machine = ["etc", "usr/share"].map(|dir| machine.join(dir).join(NAME));
            of_xdg.into_iter().chain(of_machine).find(|file| file.exists())
        });
        let shared = shared.and_then(|file| read(&file)).unwrap_or_default();
        let first = |texts: [&str; 2]| {
            texts.into_iter().find(|text| !text.is_empty()).map(|text| PathBuf::from(expanded(text, &get)))
        };
        let (conf, root) = if is_root {
            let root = first([&shared.graphroot, ""]).unwrap_or_else(|| "/var/lib/containers/storage".into());
            (shared, root)
        } else {
            let otherwise = first([&shared.rootless_storage_path, ""])
                .or_else(|| Some(under_home("XDG_DATA_HOME", ".local/share")?.join("containers/storage")));
            let own = named.or_else(|| Some(under_home("XDG_CONFIG_HOME", ".config")?.join(NAME)));
            // What else the machine's file says is about root's storage.
            let own = own.and_then(|file| read(&file)).unwrap_or(Conf { driver: shared.driver, ..Conf::default() });
            let Some(root) = first([&own.graphroot, &own.rootless_storage_path]).or(otherwise) else {
                return Vec::new();
            };
            (own, root)
        };
        let driver = get("STORAGE_DRIVER").unwrap_or(conf.driver);
        // An old name of it.
        let driver = if driver == "overlay2" { "overlay".to_owned() } else { driver };
        let driver = Some(driver).filter(|driver| !driver.is_empty());
        let additional = match get("STORAGE_OPTS") {
            Some(options) => {
                let pairs = options.split(',').filter_map(|option| option.split_once('='));
                pairs.filter(|(key, _)| key.ends_with(".imagestore")).map(|(_, path)| path.to_owned()).collect()
            }
            None => conf.options.additionalimagestores,
        };
        let images = first([&conf.imagestore, ""]);
        let all = images.into_iter().chain([root]).chain(additional.into_iter().map(PathBuf::from));
        all.map(|root| Self { root, driver: driver.clone() }).collect()
    }
}

/// What a file says, if it is there. One that podman cannot read either says nothing.
fn read(file: &Path) -> Option<Conf> {
    let text = std::fs::read_to_string(file).ok()?;
    Some(toml::from_str::<File>(&text).unwrap_or_default().storage)
}

/// `$NAME` and `${NAME}` replaced; UID is known without a variable.
fn expanded(text: &str, get: &impl Fn(&str) -> Option<String>) -> String {
    let value = |name: &str| match name {
        "UID" => rustix::process::getuid().as_raw().to_string(),
        name => get(name).unwrap_or_default(),
    };
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        done += before;
        let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        let (name, left) = braced.unwrap_or_else(|| {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        });
        done += &value(name);
        rest = left;
    }
    done + rest
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A machine with these files of containers/storage.
    fn roots(files: &[(&str, &str)], is_root: bool, vars: &[(&str, &str)]) -> Vec<String> {
        let machine = tempfile::tempdir().unwrap();
        let at = |name: &str| machine.path().join(name);
        for (name, text) in files {
            let file = at(name).join(NAME);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, format!("[storage]\n{text}\n")).unwrap();
        }
        let conf = at("named").join(NAME).display().to_string();
        let home = at("home").display().to_string();
        let xdg = at("xdg").display().to_string();
        let mut known = BTreeMap::from([("HOME", home.clone())]);
        for (name, value) in vars {
            known.insert(name, value.replace("CONF", &conf).replace("XDG", &xdg));
        }
        let storages = Storage::of_user(machine.path(), is_root, |name| known.get(name).cloned());
        let shown = storages.into_iter().map(|storage| {
            let driver = storage.driver.map(|driver| format!(" {driver}")).unwrap_or_default();
            format!("{}{driver}", storage.root.display()).replace(&home, "~")
        });
        shown.collect()
    }

    const HOME: &str = "home/.config";

    #[test]
    fn the_machines_file_is_the_administrators_or_the_distributions() {
        let (etc, usr) = (("etc", "graphroot = \"/e\""), ("usr/share", "graphroot = \"/u\"\ndriver = \"overlay2\""));
        assert_eq!(roots(&[], true, &[]), ["/var/lib/containers/storage"]);
        assert_eq!(roots(&[usr], true, &[]), ["/u overlay"]);
        assert_eq!(roots(&[usr, etc], true, &[]), ["/e"], "nothing of the other");
        assert_eq!(roots(&[usr, (HOME, "graphroot = \"/h\"")], true, &[]), ["/u overlay"], "a user's is not root's");
        let xdg = [etc, ("xdg", "graphroot = \"/x\"")];
        assert_eq!(roots(&xdg, true, &[("XDG_CONFIG_HOME", "XDG")]), ["/x"]);
        assert_eq!(
            roots(&[etc, ("named", "graphroot = \"/n/$U\"")], true, &[("CONTAINERS_STORAGE_CONF", "CONF"), ("U", "u")]),
            ["/n/u"]
        );
    }

    #[test]
    fn users_have_storages_of_their_own() {
        let own = "~/.local/share/containers/storage";
        let etc = ("etc", "graphroot = \"/e\"\ndriver = \"vfs\"\noptions.additionalimagestores = [\"/more\"]");
        let path = ("etc", "graphroot = \"/e\"\nrootless_storage_path = \"/s/${USER}/$HOME\"");
        assert_eq!(roots(&[], false, &[]), [own]);
        assert_eq!(roots(&[etc], false, &[]), [format!("{own} vfs")], "the rest of it is root's");
        assert_eq!(roots(&[etc], false, &[("XDG_DATA_HOME", "/d")]), ["/d/containers/storage vfs"]);
        assert_eq!(roots(&[path], false, &[("USER", "u")]), ["/s/u/~"]);
        // A file of the user's stands for itself, and leaves to the machine's where his storage is.
        let empty = (HOME, "driver = \"overlay\"");
        assert_eq!(roots(&[etc, empty], false, &[]), [format!("{own} overlay")]);
        assert_eq!(roots(&[path, empty], false, &[("USER", "u")]), ["/s/u/~ overlay"]);
        let mine = (HOME, "rootless_storage_path = \"$HOME/mine\"");
        assert_eq!(roots(&[path, mine], false, &[]), ["~/mine"]);
        let both = (
            HOME,
            "graphroot = \"/g/$UNKNOWN/x\"\nrootless_storage_path = \"/r\"\nimagestore = \"/i\"\noptions.additionalimagestores = [\"/a\", \"/b\"]",
        );
        assert_eq!(roots(&[path, both], false, &[]), ["/i", "/g//x", "/a", "/b"]);
        let xdg = ("xdg", "graphroot = \"/x\"");
        assert_eq!(roots(&[both, xdg], false, &[("XDG_CONFIG_HOME", "XDG")]), ["/x"]);
        let named = ("named", "graphroot = \"/n\"");
        let vars = [("XDG_CONFIG_HOME", "XDG"), ("CONTAINERS_STORAGE_CONF", "CONF"), ("STORAGE_DRIVER", "vfs")];
        assert_eq!(roots(&[both, xdg, named], false, &vars), ["/n vfs"]);
        assert_eq!(
            roots(&[(HOME, "nonsense")], false, &[("STORAGE_OPTS", "overlay.x=1,overlay.imagestore=/o")]),
            [own, "/o"]
        );
    }
}
