//! Symbolic modes of `--chmod`, with a umask of 0. BuildKit has them of BSD's setmode(3), which is not chmod(1) of GNU in
//! all corners: `=` takes setuid and setgid from directories, too, and leaves the sticky bit to whoever names it.

/// `clauses` applied to a file's permission bits.
///
/// # Errors
/// The part that is no symbolic mode.
pub(crate) fn apply(clauses: &str, mode: u32, directory: bool) -> Result<u32, String> {
    // Whether X means something is decided by what the file was before all of them.
    let executable = directory || mode & EXECUTE != 0;
    clauses.split(',').try_fold(mode, |mode, clause| {
        apply_clause(clause, mode, executable).ok_or_else(|| format!("{clause:?} is not a mode such as u+x or go=rX"))
    })
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHER: u32 = 0o0007;
const ALL: u32 = USER | GROUP | OTHER;
const SET_ID: u32 = 0o6000;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

fn apply_clause(clause: &str, mut mode: u32, executable: bool) -> Option<u32> {
    let operator = clause.find(['+', '-', '='])?;
    let (who, mut actions) = clause.split_at(operator);
    let mut classes = 0;
    for class in who.chars() {
        classes |= match class {
            'u' => USER,
            'g' => GROUP,
            'o' => OTHER,
            'a' => ALL,
            _ => return None,
        };
    }
    while !actions.is_empty() {
        let operator = actions.chars().next()?;
        let rest = &actions[1..];
        let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
        mode = Action { operator, classes, mode, executable }.apply(&rest[..end])?;
        actions = &rest[end..];
    }
    Some(mode & 0o7777)
}

/// An operator and what it works on.
struct Action {
    operator: char,
    /// The bits of those who are named, none if nobody is.
    classes: u32,
    mode: u32,
    executable: bool,
}

impl Action {
    fn apply(mut self, letters: &str) -> Option<u32> {
        // Others have neither setuid, setgid nor the sticky bit.
        let special = self.classes != OTHER;
        let (mut bits, mut execute) = (0, 0);
        // `=` alone takes everything away; a copied class has done so already.
        let mut assigned = false;
        for letter in letters.chars() {
            match letter {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= EXECUTE,
                'X' if self.operator == '-' => bits |= EXECUTE,
                'X' => execute = EXECUTE,
                's' if special => bits |= SET_ID,
                't' if special => {
                    self.classes |= STICKY;
                    bits |= STICKY;
                }
                's' | 't' => {}
                'u' | 'g' | 'o' => {
                    if bits != 0 {
                        self.change(std::mem::take(&mut bits));
                    }
                    self.add_execute(std::mem::take(&mut execute));
                    self.copy(letter);
                    assigned = true;
                }
                _ => return None,
            }
        }
        if bits != 0 || (self.operator == '=' && !assigned) {
            self.change(bits);
        }
        self.add_execute(execute);
        Some(self.mode)
    }

    /// `bits` as far as they belong to those who are named.
    fn selected(&self, bits: u32) -> u32 {
        if self.classes == 0 { bits } else { bits & self.classes }
    }

    fn change(&mut self, bits: u32) {
        let selected = self.selected(bits);
        match self.operator {
            '+' => self.mode |= selected,
            '-' => self.mode &= !selected,
            _ => self.mode = (self.mode & !self.selected(ALL | STICKY & self.classes)) | selected,
        }
    }

    fn add_execute(&mut self, bits: u32) {
        if self.executable {
            self.mode |= self.selected(bits);
        }
    }

    /// The permissions of one class, given to or taken from those who are named.
    fn copy(&mut self, class: char) {
        let shift = match class {
            'u' => 6,
            'g' => 3,
            _ => 0,
        };
        let bits = (self.mode >> shift & 7) * 0o111;
        let named = self.selected(0o777);
        match self.operator {
            '+' => self.mode |= bits & named,
            '-' => self.mode &= !(bits & named),
            _ => self.mode = (self.mode & !named) | (bits & named),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::apply;

    #[test]
    fn modes_change_as_with_setmode() {
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
            // What setmode(3) has of its own.
            ("a=rX", 0o2750, true, 0o555),
            ("a=rX", 0o1777, true, 0o1555),
            ("u=rwx", 0o4700, false, 0o700),
            ("u=g", 0o4640, false, 0o4440),
            ("o+t", 0o777, true, 0o777),
            ("u+t", 0o777, true, 0o1777),
            ("+rt", 0o000, false, 0o1000),
            ("u+x,go+X", 0o600, false, 0o700),
            ("a-X", 0o755, false, 0o644),
            ("u=rwg", 0o070, false, 0o770),
            ("=", 0o7777, false, 0o1000),
        ] {
            assert_eq!(apply(clauses, before, directory), Ok(after), "{clauses} {before:o}");
        }
        for clauses in ["", "x", "u", "q+x", "u+z", "u+x,"] {
            assert!(apply(clauses, 0o644, false).is_err(), "{clauses}");
        }
    }
}
