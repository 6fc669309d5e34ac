//! Symbolic modes of `--chmod`, as chmod(1) (POSIX) defines them, with a umask of 0.

/// `clauses` applied to a file's permission bits.
///
/// # Errors
/// The part that is no symbolic mode.
pub(crate) fn apply(clauses: &str, mode: u32, directory: bool) -> Result<u32, String> {
    clauses.split(',').try_fold(mode, |mode, clause| {
        apply_clause(clause, mode, directory).ok_or_else(|| format!("{clause:?} is not a mode such as u+x or go=rX"))
    })
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHER: u32 = 0o0007;
const STICKY: u32 = 0o1000;

fn apply_clause(clause: &str, mut mode: u32, directory: bool) -> Option<u32> {
    let operator = clause.find(['+', '-', '='])?;
    let (who, mut actions) = clause.split_at(operator);
    let mut classes = 0;
    for class in who.chars() {
        classes |= match class {
            'u' => USER,
            'g' => GROUP,
            'o' => OTHER,
            'a' => USER | GROUP | OTHER | STICKY,
            _ => return None,
        };
    }
    if who.is_empty() {
        classes = USER | GROUP | OTHER | STICKY;
    }
    while !actions.is_empty() {
        let operator = actions.chars().next()?;
        let rest = &actions[1..];
        let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
        let bits = permissions(&rest[..end], mode, directory)?;
        // The sticky bit belongs to no class: it is set or cleared by whoever names it.
        let selected = bits & (classes | (bits & STICKY));
        mode = match operator {
            '+' => mode | selected,
            '-' => mode & !selected,
            // A directory keeps setuid and setgid unless they are named (GNU chmod).
            '=' => (mode & !(classes & if directory { 0o0777 | STICKY } else { 0o7777 })) | selected,
            _ => return None,
        };
        actions = &rest[end..];
    }
    Some(mode & 0o7777)
}

/// The bits that letters stand for, in all classes.
fn permissions(letters: &str, mode: u32, directory: bool) -> Option<u32> {
    let copied = |bits: u32| bits * 0o111;
    match letters {
        "u" => return Some(copied(mode >> 6 & 7)),
        "g" => return Some(copied(mode >> 3 & 7)),
        "o" => return Some(copied(mode & 7)),
        _ => {}
    }
    let mut bits = 0;
    for letter in letters.chars() {
        bits |= match letter {
            'r' => 0o444,
            'w' => 0o222,
            'x' => 0o111,
            'X' if directory || mode & 0o111 != 0 => 0o111,
            'X' => 0,
            's' => 0o6000,
            't' => STICKY,
            _ => return None,
        };
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::apply;

    #[test]
    fn modes_change_as_with_chmod() {
        for (clauses, before, directory, after) in [
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("go=rX", 0o700, false, 0o755),
            ("go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rw,g=r,o=", 0o777, false, 0o640),
            ("g=u", 0o640, false, 0o660),
            ("u+s", 0o755, false, 0o4755),
            ("+t", 0o777, true, 0o1777),
            ("ug+rw-x", 0o711, false, 0o661),
            ("g+s", 0o755, true, 0o2755),
        ] {
            assert_eq!(apply(clauses, before, directory), Ok(after), "{clauses} {before:o}");
        }
        for clauses in ["", "x", "u", "q+x", "u+z", "u+x,"] {
            assert!(apply(clauses, 0o644, false).is_err(), "{clauses}");
        }
    }
}
