//! Private keys in files: OpenSSH's own form, PKCS #1, PKCS #8 and SEC 1.

use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};

/// Largest file that is taken for a key, as with BuildKit.
const LARGEST: u64 = 100 << 10;
const PASSPHRASE: &str = "the key is protected by a passphrase: add it to an agent (ssh-add) and pass that";

// Flags of a request for a signature.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// A key that can sign.
pub(super) struct Key {
    signer: Signer,
    /// As the protocol has the public key.
    public: Vec<u8>,
    comment: String,
}

enum Signer {
    Ed25519(Box<Ed25519KeyPair>),
    Ecdsa(Curve, Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

#[derive(Clone, Copy)]
enum Curve {
    P256,
    P384,
}

impl Curve {
    const ALL: [Self; 2] = [Self::P256, Self::P384];

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "nistp256",
            Self::P384 => "nistp384",
        }
    }

    fn algorithm(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }

    /// Bytes of a coordinate.
    fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

impl Key {
    /// Reads a key.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let mut text = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut text));
        read.map_err(|error| error.to_string())?;
        let mut key = Self::parse(&text)?;
        if key.comment.is_empty() {
            key.comment = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        }
        Ok(key)
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "this is no private key".to_owned())?;
        let (label, der) = armoured(text)?;
        let wrong =
            |what: &str| format!("the {what} cannot be used: it is damaged, or of a kind that is not supported");
        match label.as_str() {
            "OPENSSH PRIVATE KEY" => openssh(&der),
            "RSA PRIVATE KEY" => Self::rsa(RsaKeyPair::from_der(&der).map_err(refused)?, String::new()),
            "EC PRIVATE KEY" => {
                let (private, public) = sec1(&der).ok_or_else(|| wrong("elliptic curve key"))?;
                let key = Curve::ALL.into_iter().find_map(|curve| ecdsa(curve, private, public));
                key.ok_or_else(|| wrong("elliptic curve key"))
                    .and_then(|(curve, pair)| Self::ecdsa(curve, pair, String::new()))
            }
            "PRIVATE KEY" => {
                if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der) {
                    return Self::ed25519(pair, String::new());
                }
                let random = SystemRandom::new();
                for curve in Curve::ALL {
                    if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.algorithm(), &der, &random) {
                        return Self::ecdsa(curve, pair, String::new());
                    }
                }
                Self::rsa(RsaKeyPair::from_pkcs8(&der).map_err(refused)?, String::new())
            }
            "ENCRYPTED PRIVATE KEY" => Err(PASSPHRASE.to_owned()),
            other => Err(format!("a {other} is no private key that can be used")),
        }
    }

    fn ed25519(pair: Ed25519KeyPair, comment: String) -> Result<Self, String> {
        let mut public = Vec::new();
        put_string(&mut public, b"ssh-ed25519");
        put_string(&mut public, pair.public_key().as_ref());
        Ok(Self { signer: Signer::Ed25519(Box::new(pair)), public, comment })
    }

    fn ecdsa(curve: Curve, pair: EcdsaKeyPair, comment: String) -> Result<Self, String> {
        let mut public = Vec::new();
        put_string(&mut public, format!("ecdsa-sha2-{}", curve.name()).as_bytes());
        put_string(&mut public, curve.name().as_bytes());
        put_string(&mut public, pair.public_key().as_ref());
        Ok(Self { signer: Signer::Ecdsa(curve, Box::new(pair)), public, comment })
    }

    fn rsa(pair: RsaKeyPair, comment: String) -> Result<Self, String> {
        let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let mut public = Vec::new();
        put_string(&mut public, b"ssh-rsa");
        put_integer(&mut public, &e);
        put_integer(&mut public, &n);
        Ok(Self { signer: Signer::Rsa(Box::new(pair)), public, comment })
    }

    /// The public key, which is its name.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    pub(super) fn comment(&self) -> &str {
        &self.comment
    }

    /// A signature; `None` if it cannot be made in the way that is asked for.
    pub(super) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (name, signature) = match &self.signer {
            Signer::Ed25519(pair) => ("ssh-ed25519".to_owned(), pair.sign(data).as_ref().to_vec()),
            Signer::Ecdsa(curve, pair) => {
                let fixed = pair.sign(&random, data).ok()?;
                let (r, s) = fixed.as_ref().split_at(curve.size());
                let mut both = Vec::new();
                put_integer(&mut both, r);
                put_integer(&mut both, s);
                (format!("ecdsa-sha2-{}", curve.name()), both)
            }
            Signer::Rsa(pair) => {
                // Without a flag SHA-1 is meant, which nobody accepts any more.
                let (name, padding) = match flags {
                    flags if flags & RSA_SHA2_512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & RSA_SHA2_256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                (name.to_owned(), signature)
            }
        };
        let mut signed = Vec::new();
        put_string(&mut signed, name.as_bytes());
        put_string(&mut signed, &signature);
        Some(signed)
    }
}

fn refused(why: ring::error::KeyRejected) -> String {
    match why.to_string().as_str() {
        "TooSmall" => "RSA keys of fewer than 2048 bits are not supported".to_owned(),
        why => format!("the key cannot be used ({why})"),
    }
}

fn ecdsa(curve: Curve, private: &[u8], public: &[u8]) -> Option<(Curve, EcdsaKeyPair)> {
    let mut padded = vec![0; curve.size().checked_sub(private.len())?];
    padded.extend_from_slice(private);
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm(), &padded, public, &random).ok()?;
    Some((curve, pair))
}

/// The first armoured block: its label, and what it holds.
fn armoured(text: &str) -> Result<(String, Vec<u8>), String> {
    let none = || "this is no private key".to_owned();
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.starts_with("-----BEGIN "));
    let label =
        lines.next().and_then(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")).ok_or_else(none)?;
    let end = format!("-----END {label}-----");
    let mut body = String::new();
    for line in lines.by_ref() {
        if line == end {
            let bytes = STANDARD.decode(body).map_err(|_| "the private key is damaged".to_owned())?;
            return Ok((label.to_owned(), bytes));
        }
        if line.contains("ENCRYPTED") {
            return Err(PASSPHRASE.to_owned());
        }
        if !line.contains(':') {
            body.push_str(line);
        }
    }
    Err("the private key is cut off".to_owned())
}

/// OpenSSH's own form (PROTOCOL.key in its sources).
fn openssh(bytes: &[u8]) -> Result<Key, String> {
    let damaged = || "the private key is damaged".to_owned();
    let mut outer = Reader(bytes.strip_prefix(b"openssh-key-v1\0").ok_or_else(damaged)?);
    let cipher = outer.string().ok_or_else(damaged)?;
    if cipher != b"none" {
        return Err(PASSPHRASE.to_owned());
    }
    let inner = || {
        let (_derivation, _options, count, _public) =
            (outer.string()?, outer.string()?, outer.number()?, outer.string()?);
        (count == 1).then_some(())?;
        let mut inner = Reader(outer.string()?);
        // Two equal numbers say that nothing was decrypted wrongly.
        (inner.number()? == inner.number()?).then_some(inner)
    };
    let mut inner = { inner }().ok_or_else(damaged)?;
    let kind = inner.string().ok_or_else(damaged)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match kind {
        b"ssh-ed25519" => {
            let (public, both, comment) = three(&mut inner).ok_or_else(damaged)?;
            let seed = both.get(..32).ok_or_else(damaged)?;
            let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(refused)?;
            Key::ed25519(pair, text(comment))
        }
        b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" => {
            let name = inner.string().ok_or_else(damaged)?;
            let (public, private, comment) = three(&mut inner).ok_or_else(damaged)?;
            let curve = Curve::ALL.into_iter().find(|curve| curve.name().as_bytes() == name).ok_or_else(damaged)?;
            let (curve, pair) = ecdsa(curve, unsigned(private), public).ok_or_else(damaged)?;
            Key::ecdsa(curve, pair, text(comment))
        }
        b"ssh-rsa" => {
            let (n, e, d) = three(&mut inner).ok_or_else(damaged)?;
            let (inverse, p, q) = three(&mut inner).ok_or_else(damaged)?;
            let comment = inner.string().ok_or_else(damaged)?;
            let [n, e, d, inverse, p, q] = [n, e, d, inverse, p, q].map(unsigned);
            let (d_p, d_q) = (remainder(d, &less_one(p)), remainder(d, &less_one(q)));
            let components = KeyPairComponents {
                public_key: PublicKeyComponents { n, e },
                d,
                p,
                q,
                dP: unsigned(&d_p),
                dQ: unsigned(&d_q),
                qInv: inverse,
            };
            Key::rsa(RsaKeyPair::from_components(&components).map_err(refused)?, text(comment))
        }
        other => Err(format!("keys of the kind {} are not supported, but by an agent", text(other))),
    }
}

fn three<'b>(from: &mut Reader<'b>) -> Option<(&'b [u8], &'b [u8], &'b [u8])> {
    Some((from.string()?, from.string()?, from.string()?))
}

/// SEC 1's form of a key: the private number and the public point.
fn sec1(der: &[u8]) -> Option<(&[u8], &[u8])> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    const OCTETS: u8 = 0x04;
    const BITS: u8 = 0x03;
    const POINT: u8 = 0xa1;
    let (sequence, _) = element(der, SEQUENCE)?;
    let (_version, rest) = element(sequence, INTEGER)?;
    let (private, mut rest) = element(rest, OCTETS)?;
    // The curve's name comes between them, and follows from their sizes.
    while let Some(&tag) = rest.first() {
        let (content, after) = element(rest, tag)?;
        if tag == POINT {
            let (bits, _) = element(content, BITS)?;
            return Some((private, bits.strip_prefix(&[0])?));
        }
        rest = after;
    }
    None
}

/// The content of a DER element with this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match *bytes.strip_prefix(&[tag])? {
        [short @ 0..=0x7f, ref rest @ ..] => (usize::from(short), rest),
        [0x81, length, ref rest @ ..] => (usize::from(length), rest),
        [0x82, high, low, ref rest @ ..] => (usize::from(high) << 8 | usize::from(low), rest),
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Without the zeros in front.
fn unsigned(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// An odd number less one.
fn less_one(odd: &[u8]) -> Vec<u8> {
    let mut number = odd.to_vec();
    if let Some(last) = number.last_mut() {
        *last &= 0xfe;
    }
    number
}

/// What a division leaves, bit by bit, with most significant bytes first. What is no divisor leaves nothing.
fn remainder(number: &[u8], divisor: &[u8]) -> Vec<u8> {
    let divisor = unsigned(divisor);
    if divisor.is_empty() {
        return Vec::new();
    }
    // One byte more than the divisor, for the bit that comes in.
    let mut left = vec![0_u8; divisor.len() + 1];
    let wide: Vec<u8> = std::iter::once(0).chain(divisor.iter().copied()).collect();
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        let mut carry = bit;
        for byte in left.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if left >= wide {
            let mut borrow = false;
            for (byte, other) in left.iter_mut().zip(&wide).rev() {
                let (less, first) = byte.overflowing_sub(*other);
                let (less, second) = less.overflowing_sub(u8::from(borrow));
                (*byte, borrow) = (less, first || second);
            }
        }
    }
    left
}

/// Reads what the protocol writes.
pub(super) struct Reader<'b>(pub(super) &'b [u8]);

impl<'b> Reader<'b> {
    pub(super) fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    pub(super) fn string(&mut self) -> Option<&'b [u8]> {
        let length = self.number()?;
        let (string, rest) = self.0.split_at_checked(length as usize)?;
        self.0 = rest;
        Some(string)
    }
}

pub(super) fn put_string(to: &mut Vec<u8>, string: &[u8]) {
    // Keys, signatures and comments are far from the limit.
    to.extend(u32::try_from(string.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(string);
}

/// A positive number: without zeros in front, but with one where the first bit would make it a negative one.
fn put_integer(to: &mut Vec<u8>, number: &[u8]) {
    let number = unsigned(number);
    let sign: &[u8] = if number.first().is_some_and(|first| *first >= 0x80) { &[0] } else { &[] };
    put_string(to, &[sign, number].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_leaves_what_it_should() {
        for (number, divisor) in [(1_000_003_u64, 1000_u64), (u64::MAX, 0x1_0000_0001), (5, 7), (0, 3), (1 << 63, 255)]
        {
            let left = remainder(&number.to_be_bytes(), &divisor.to_be_bytes());
            let left = unsigned(&left).iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
            assert_eq!(left, number % divisor, "{number} by {divisor}");
        }
        assert!(remainder(&[1], &[0, 0]).is_empty());
    }

    #[test]
    fn damaged_keys_are_refused() {
        let armour = |label: &str, bytes: &[u8]| {
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(bytes))
        };
        for (text, why) in [
            (String::new(), "no private key"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n".to_owned(), "cut off"),
            (armour("OPENSSH PRIVATE KEY", b"openssh-key-v1\0"), "damaged"),
            (armour("OPENSSH PRIVATE KEY", b"openssh-key-v1\0\xff\xff\xff\xff"), "damaged"),
            (armour("OPENSSH PRIVATE KEY", b"openssh-key-v1\0\0\0\0\x0aaes256-ctr"), "passphrase"),
            (armour("RSA PRIVATE KEY", b"x"), "cannot be used"),
            (armour("EC PRIVATE KEY", &[0x30, 0x82, 0xff]), "cannot be used"),
            (armour("PRIVATE KEY", b"x"), "cannot be used"),
            (armour("ENCRYPTED PRIVATE KEY", b"x"), "passphrase"),
            (armour("CERTIFICATE", b"x"), "no private key that can be used"),
            ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nAAAA\n-----END RSA PRIVATE KEY-----\n".to_owned(), "passphrase"),
        ] {
            let found = Key::parse(text.as_bytes()).err().unwrap_or_default();
            assert!(found.contains(why), "{text:?}: {found}");
        }
    }

    #[test]
    fn numbers_have_the_protocols_form() {
        for (number, want) in
            [(&[0, 0, 1][..], &[0, 0, 0, 1, 1][..]), (&[0x80], &[0, 0, 0, 2, 0, 0x80]), (&[], &[0, 0, 0, 0])]
        {
            let mut out = Vec::new();
            put_integer(&mut out, number);
            assert_eq!(out, want);
        }
    }
}
