//! Philox4x32-10, the counter-based random numbers of Salmon et al. 2011 ("Parallel random numbers: as easy
//! as 1, 2, 3"; Random123's `philox.h`): a draw is a function of key and counter, so it needs no state and is
//! the same on every device, whatever shares the batch.

/// One block: 128 random bits for a 128-bit counter and a 64-bit key.
#[must_use]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9E37_79B9); // golden ratio
            key[1] = key[1].wrapping_add(0xBB67_AE85); // sqrt(3) - 1
        }
        let product0 = u64::from(counter[0]) * 0xD251_1F53;
        let product1 = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key[1],
            product0 as u32,
        ];
    }
    counter
}

/// The uniform draw in [0, 1) of the token at `position` of a sequence: key = `seed` (low word first),
/// counter = (`position` low word, high word, 0, 0); of the block's words x₀, x₁ the upper 53 bits of
/// x₁·2³² + x₀, times 2⁻⁵³. Any backend that samples must draw exactly this.
#[must_use]
pub fn uniform(seed: u64, position: u64) -> f64 {
    let [x0, x1, ..] =
        philox4x32_10([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(x1) << 32 | u64::from(x0);
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123's `kat_vectors`, the lines `philox4x32 10`.
    #[test]
    fn known_answers() {
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn uniform_uses_all_of_seed_and_position() {
        // From the first known answer: x₀ = 6627e8d5, x₁ = e169c58d.
        let expected = 0xe169_c58d_6627_e8d5_u64 as f64 / 2f64.powi(64);
        assert!((uniform(0, 0) - expected).abs() < 2f64.powi(-52));
        for bit in 0..64 {
            assert_ne!(uniform(1 << bit, 0), uniform(0, 0));
            assert_ne!(uniform(0, 1 << bit), uniform(0, 0));
            assert_ne!(uniform(0, 1 << bit), uniform(1 << bit, 0));
        }
    }

    #[test]
    fn uniform_is_uniform() {
        // Chi-square over 100 cells, 99 degrees of freedom: 0.1% of uniform samples lie above 148.2.
        for seed in 0..5 {
            let mut cells = [0f64; 100];
            for position in 0..100_000 {
                let draw = uniform(seed, position);
                assert!((0.0..1.0).contains(&draw));
                cells[(draw * 100.0) as usize] += 1.0;
            }
            let chi_square: f64 = cells.iter().map(|n| (n - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi_square < 148.2, "seed {seed}: {chi_square}");
        }
    }
}
