//! 4-bit codes in the order that `formats` reads.
//!
//! Checkpoints store 32 codes in 16 bytes as pairs: byte j holds element 2j (low) and 2j + 1 (high). Our row order, GGUF's,
//! has element j (low) and j + 16 (high). The one is a permutation of the other, so nothing is lost on the way.

/// Bytes of 32 codes.
pub const BLOCK: usize = 16;

/// From pairs to halves, block by block. What is left over at the end stays as it is.
pub fn to_halves(bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<BLOCK>().0 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *block;
        let low = |first: u8, second: u8| (first & 15) | (second << 4);
        let high = |first: u8, second: u8| (first >> 4) | (second & 0xf0);
        *block = [
            low(a, i),
            high(a, i),
            low(b, j),
            high(b, j),
            low(c, k),
            high(c, k),
            low(d, l),
            high(d, l),
            low(e, m),
            high(e, m),
            low(f, n),
            high(f, n),
            low(g, o),
            high(g, o),
            low(h, p),
            high(h, p),
        ];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_arrives_at_its_place() {
        // Code of element e: (7 e + 3) mod 16.
        let code = |e: usize| ((7 * e + 3) % 16) as u8;
        let mut bytes: Vec<u8> = (0..16).map(|j| code(2 * j) | code(2 * j + 1) << 4).collect();
        to_halves(&mut bytes);
        assert_eq!(bytes, (0..16).map(|j| code(j) | code(j + 16) << 4).collect::<Vec<_>>());
    }
}
