//! The checksum that every value carries: CRC-32 over key and value, so that a record that strayed to another key is caught too.

/// Appends the checksum to a value.
pub(super) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(value.len() + LEN);
    sealed.extend_from_slice(value);
    sealed.extend_from_slice(&checksum(key, value));
    sealed
}

/// The value without its checksum; `None` when they do not agree.
pub(super) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (value, found) = sealed.split_at_checked(sealed.len().checked_sub(LEN)?)?;
    (checksum(key, value) == found).then_some(value)
}

const LEN: usize = 4;

fn checksum(key: &[u8], value: &[u8]) -> [u8; LEN] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[0xFF]); // keeps a byte that moves from the key to the value from going unnoticed: 0xFF occurs in no UTF-8
    hasher.update(value);
    hasher.finalize().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let sealed = seal(b"key", b"value");
        assert_eq!(unseal(b"key", &sealed), Some(&b"value"[..]));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(b"key", &flipped), None, "bit {bit}");
        }
        assert_eq!(unseal(b"kez", &sealed), None, "a record under another key");
        assert_eq!(unseal(b"key", &sealed[..3]), None, "cut short");
    }
}
