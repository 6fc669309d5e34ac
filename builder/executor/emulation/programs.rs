//! What tells one architecture's programs from another's, and the smallest program of each.

/// An architecture of programs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// As platforms name it.
    name: &'static str,
    /// As QEMU's programs name it.
    qemu: &'static str,
    /// e_machine of elf(5).
    number: u16,
    wide: bool,
    big_endian: bool,
    /// e_flags of elf(5), without which the architecture's programs are not taken for its own.
    flags: u32,
    /// Exits with the number of its arguments, which lies at the stack pointer.
    code: &'static [u8],
}

const fn little(name: &'static str, qemu: &'static str, number: u16, flags: u32, code: &'static [u8]) -> Machine {
    Machine { name, qemu, number, wide: true, big_endian: false, flags, code }
}

/// Machine code as its manuals have it: load the word at the stack pointer as first argument, the number of exit, call.
const MACHINES: &[Machine] = &[
    // mov edi, [rsp]; mov eax, 60; syscall
    little("amd64", "x86_64", 62, 0, &[0x8b, 0x3c, 0x24, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]),
    // mov ebx, [esp]; mov eax, 1; int 0x80
    Machine { wide: false, ..little("386", "i386", 3, 0, &[0x8b, 0x1c, 0x24, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]) },
    // ldr w0, [sp]; mov w8, #93; svc #0
    little("arm64", "aarch64", 183, 0, &[0xe0, 0x03, 0x40, 0xb9, 0xa8, 0x0b, 0x80, 0x52, 0x01, 0, 0, 0xd4]),
    // ldr r0, [sp]; mov r7, #1; svc #0 (EABI version 5)
    Machine {
        wide: false,
        ..little("arm", "arm", 40, 0x0500_0000, &[0, 0, 0x9d, 0xe5, 1, 0x70, 0xa0, 0xe3, 0, 0, 0, 0xef])
    },
    // lw a0, 0(sp); li a7, 93; ecall
    little("riscv64", "riscv64", 243, 0, &[0x03, 0x25, 0x01, 0, 0x93, 0x08, 0xd0, 0x05, 0x73, 0, 0, 0]),
    // ld r3, 0(r1); li r0, 1; sc (ELF version 2)
    little("ppc64le", "ppc64le", 21, 2, &[0, 0, 0x61, 0xe8, 1, 0, 0, 0x38, 2, 0, 0, 0x44]),
    // lg %r2, 0(%r15); svc 1
    Machine { big_endian: true, ..little("s390x", "s390x", 22, 0, &[0xe3, 0x20, 0xf0, 0, 0, 0x04, 0x0a, 0x01]) },
    // ld a0, 0(sp); li v0, 5058; syscall (64 bit release 2)
    little("mips64le", "mips64el", 8, 0x8000_0000, &[0, 0, 0xa4, 0xdf, 0xc2, 0x13, 0x02, 0x24, 0x0c, 0, 0, 0]),
    Machine {
        big_endian: true,
        ..little("mips64", "mips64", 8, 0x8000_0000, &[0xdf, 0xa4, 0, 0, 0x24, 0x02, 0x13, 0xc2, 0, 0, 0, 0x0c])
    },
    // ld.d $a0, $sp, 0; ori $a7, $zero, 93; syscall 0
    little("loong64", "loongarch64", 258, 0x43, &[0x64, 0, 0xc0, 0x28, 0x0b, 0x74, 0x81, 0x03, 0, 0, 0x2b, 0]),
];

/// Where the program is in memory. The lowest page that every kernel gives to a program.
const ADDRESS: u64 = 0x40_0000;

impl Machine {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        MACHINES.iter().find(|machine| machine.name == name)
    }

    pub(super) fn all() -> impl Iterator<Item = &'static Self> {
        MACHINES.iter()
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Names of the programs that may run this machine's programs.
    pub(super) fn interpreters(&self) -> [String; 2] {
        [format!("qemu-{}-static", self.qemu), format!("qemu-{}", self.qemu)]
    }

    /// Whether the processor we are compiled for runs these programs by itself, if its kernel is so configured.
    pub(super) fn is_ours(&self) -> bool {
        let own: &[&str] = match std::env::consts::ARCH {
            "x86_64" => &["amd64", "386"],
            "aarch64" => &["arm64", "arm"],
            "loongarch64" => &["loong64"],
            "powerpc64" => &["ppc64le"],
            own => &[own],
        };
        own.contains(&self.name)
    }

    /// A whole program that exits with the number of its arguments.
    pub(super) fn program(&self) -> Vec<u8> {
        let (header, segment) = if self.wide { (64_u16, 56_u16) } else { (52, 32) };
        let start = u64::from(header + segment);
        let mut out = Writer { bytes: self.identity(2), machine: self };
        out.short(self.number);
        out.word(1);
        out.address(ADDRESS + start);
        out.address(u64::from(header));
        out.address(0);
        out.word(self.flags);
        // Sizes and counts: one segment, no sections.
        for value in [header, segment, 1, 0, 0, 0] {
            out.short(value);
        }
        const LOADED: u32 = 1;
        const READ_AND_EXECUTE: u32 = 5;
        let length = start + self.code.len() as u64;
        out.word(LOADED);
        if self.wide {
            out.word(READ_AND_EXECUTE);
        }
        for value in [0, ADDRESS, ADDRESS, length, length] {
            out.address(value);
        }
        if !self.wide {
            out.word(READ_AND_EXECUTE);
        }
        out.address(0x1_0000);
        out.bytes.extend_from_slice(self.code);
        out.bytes
    }

    /// The beginning of a program's file, up to the number of the machine.
    fn identity(&self, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(self.wide), 1 + u8::from(self.big_endian), 1];
        bytes.resize(16, 0);
        let mut out = Writer { bytes, machine: self };
        out.short(kind);
        out.bytes
    }

    /// The line that makes a kernel run such programs by an interpreter (the kernel's admin-guide/binfmt-misc.rst). Flags: the
    /// interpreter is opened now (F), gets the program opened (O), with its setuid bits (C), and its first argument as it
    /// was (P).
    pub(super) fn registration(&self, name: &str, interpreter: &str, keeps_argument: bool) -> String {
        let mut magic = Writer { bytes: self.identity(2), machine: self };
        magic.short(self.number);
        // Any ABI of the operating system; programs that are loaded anywhere (kind 3) as well.
        let mut mask = vec![0xff; 20];
        mask[7] = 0;
        mask[if self.big_endian { 17 } else { 16 }] = 0xfe;
        let flags = if keeps_argument { "OCPF" } else { "OCF" };
        format!(":{name}:M::{}:{}:{interpreter}:{flags}", escape(&magic.bytes), escape(&mask))
    }
}

fn escape(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// Numbers in the machine's order and width.
struct Writer<'machine> {
    bytes: Vec<u8>,
    machine: &'machine Machine,
}

impl Writer<'_> {
    fn put(&mut self, little: &[u8]) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(little);
        if self.machine.big_endian {
            self.bytes[at..].reverse();
        }
    }

    fn short(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn word(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn address(&mut self, value: u64) {
        let bytes = value.to_le_bytes();
        self.put(if self.machine.wide { &bytes } else { &bytes[..4] });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_what_debian_registers() {
        let machine = Machine::find("arm64").expect("known");
        assert_eq!(
            machine.registration("qemu-aarch64", "/usr/bin/qemu-aarch64-static", true),
            r":qemu-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:OCPF"
        );
        let machine = Machine::find("s390x").expect("known");
        let line = machine.registration("q", "/q", false);
        assert!(line.contains(r"\x45\x4c\x46\x02\x02\x01"), "{line}");
        assert!(line.contains(r"\x00\x02\x00\x16:"), "{line}");
        assert!(line.ends_with(r"\xff\xfe\xff\xff:/q:OCF"), "{line}");
    }

    #[test]
    fn our_own_program_counts_its_arguments() {
        use std::os::unix::fs::PermissionsExt;
        let own = MACHINES.iter().find(|machine| machine.is_ours()).expect("one of them is ours");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("program");
        std::fs::write(&path, own.program()).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("ours");
        let status = std::process::Command::new(&path).args(["a", "b"]).status().expect("started");
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn programs_of_every_machine_have_whole_headers() {
        for machine in MACHINES {
            let program = machine.program();
            let header = if machine.wide { 64 + 56 } else { 52 + 32 };
            assert_eq!(program.len(), header + machine.code.len(), "{}", machine.name);
        }
    }
}
