//! Random numbers that a seed reproduces, and a mixing of 64 bits that can be undone.

/// SplitMix64: 64 bits of state, passes the usual batteries, and 1 ns a number. Nothing here is secret.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence that `seed` stands for.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number in `0.0..1.0`.
    #[inline]
    pub fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number in `0..bound`. The bias is below 2^-32 for every bound that occurs here.
    #[inline]
    pub fn next_below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// An exponentially distributed number with mean 1: the gaps of a Poisson process.
    #[inline]
    pub fn next_exponential(&mut self) -> f64 {
        // 1 - unit is in 0.0..=1.0 without the 0, so the logarithm is finite.
        -(1.0 - self.next_unit()).ln()
    }
}

/// A seed that no other process is likely to have.
pub fn seed() -> u64 {
    let address = &raw const SEED_SALT as u64;
    mix(crate::clock::unix_seconds()
        ^ (u64::from(std::process::id()) << 32)
        ^ address.rotate_left(17)
        ^ crate::clock::now_ns())
}

static SEED_SALT: u8 = 0;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const FIRST: u64 = 0xbf58_476d_1ce4_e5b9;
const SECOND: u64 = 0x94d0_49bb_1331_11eb;

/// Scatters 64 bits over 64 bits, one to one: consecutive numbers come out looking unrelated.
#[inline]
pub const fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(FIRST);
    let number = (number ^ number >> 27).wrapping_mul(SECOND);
    number ^ number >> 31
}

/// Undoes [`mix`].
#[inline]
pub const fn unmix(number: u64) -> u64 {
    let number = (number ^ number >> 31 ^ number >> 62).wrapping_mul(inverse(SECOND));
    let number = (number ^ number >> 27 ^ number >> 54).wrapping_mul(inverse(FIRST));
    number ^ number >> 30 ^ number >> 60
}

/// The number that gives 1 when multiplied with this odd one, modulo 2^64. Each step of Newton's iteration doubles the
/// bits that are right; the first three are right from the start.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_is_undone() {
        let mut rng = Rng::new(1);
        for number in (0..1000).chain((0..1000).map(|_| rng.next_u64())).chain([u64::MAX]) {
            assert_eq!(unmix(mix(number)), number);
        }
    }

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let (mut one, mut other) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| one.next_u64() == other.next_u64()));
        assert_ne!(Rng::new(7).next_u64(), Rng::new(8).next_u64());
    }

    #[test]
    fn an_exponential_has_the_mean_and_the_spread_of_one() {
        let mut rng = Rng::new(42);
        let numbers: Vec<f64> = (0..100_000).map(|_| rng.next_exponential()).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / numbers.len() as f64;
        assert!((mean - 1.0).abs() < 0.02 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
