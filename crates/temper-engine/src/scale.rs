//! Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2), as `torch.amp.GradScaler`.

use serde::{Deserialize, Serialize};

/// Steps without overflow after which the scale doubles.
const PATIENCE: u32 = 2000;
/// Where it begins. PyTorch begins at 65,536 with a mean over the targets; here the loss is their sum.
const FIRST: f64 = 4096.0;

/// What the loss is multiplied with before it goes backward in f16, so that small gradients do not become zero. A step whose
/// gradients overflow is skipped and halves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    /// The factor, a power of two: multiplying with it rounds nothing.
    pub factor: f64,
    /// Steps since it last changed.
    good: u32,
    /// Steps that were skipped.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: FIRST, good: 0, skipped: 0 }
    }
}

impl LossScale {
    /// Takes note of a step whose gradients were finite.
    pub fn passed(&mut self) {
        self.good += 1;
        if self.good == PATIENCE {
            (self.factor, self.good) = (2.0 * self.factor, 0);
        }
    }

    /// Takes note of a step whose gradients overflowed; says whether a smaller factor is left to try.
    pub fn overflowed(&mut self) -> bool {
        (self.factor, self.good) = (self.factor / 2.0, 0);
        self.skipped += 1;
        // Below this even a loss of f32 would be lost.
        self.factor >= 2.0_f64.powi(-24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_late() {
        let mut scale = LossScale::default();
        assert!(scale.overflowed());
        assert_eq!((scale.factor, scale.skipped), (FIRST / 2.0, 1));
        (1..PATIENCE).for_each(|_| scale.passed());
        assert_eq!(scale.factor, FIRST / 2.0);
        scale.passed();
        assert_eq!(scale.factor, FIRST);
        let halved = (0..).take_while(|_| scale.overflowed()).count();
        assert_eq!(halved, 12 + 24);
    }
}
