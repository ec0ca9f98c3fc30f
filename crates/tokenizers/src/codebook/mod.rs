//! A codebook that is a queue of teacher tokens, and soft assignments to its words.

mod choice;
mod config;

pub use choice::{Choice, Chosen, Place};
pub use config::{CodebookConfig, CodebookSettings, CodebookUpdate};

use candle_core::{D, DType, Tensor};
use occlude_kernels::{
    Error, Init, Measure, Result, Scope, Softened, assign, gather_rows, l2_normalize, linear, nearest, scatter_rows,
    soften,
};
use std::ops::Range;

/// The smallest norm that a token, a word or an assignment is divided by.
const NORM_FLOOR: f64 = 1e-5;
/// How much of the running distance a batch leaves.
const MOMENTUM: f64 = 0.99;
/// Running distance before the first step.
const FIRST_DISTANCE: f64 = 0.5;
const OP: &str = "codebook";

/// Words, the place of the next one, and the temperature of the assignments. Its tensors have the names of the official
/// MOCA checkpoints, so the state of the store that it was made in is its state.
#[derive(Debug)]
pub struct OnlineCodebook {
    words: Tensor,    // [words, dim]
    pointer: Tensor,  // [1], int64: the oldest word, which is replaced next
    steps: Tensor,    // [1]
    distance: Tensor, // [1]: running mean similarity distance
    frozen: Tensor,   // [1]: what it was at the last update
    settings: CodebookSettings,
}

/// Soft assignments of tokens, of one view or of several. No gradient.
#[derive(Clone, Debug)]
pub struct Assignments {
    /// Every patch as a distribution over words.  [batch, patches, words]
    pub targets: Tensor,
    /// Entropy of each of them, image after image.
    pub entropies: Vec<f64>,
    /// By how much the largest cosine of each patch passes its mean cosine.
    leads: Vec<f64>,
}

impl Assignments {
    /// Mean similarity distance of the images `images`, those of one view. The mean of it over all processes is what
    /// [`OnlineCodebook::observe`] is told.
    ///
    /// # Panics
    /// Images beyond the batch.
    #[must_use]
    pub fn distance(&self, images: Range<usize>) -> f64 {
        let patches = self.targets.dims()[1];
        let leads = &self.leads[images.start * patches..images.end * patches];
        (leads.iter().sum::<f64>() / leads.len() as f64).abs()
    }
}

impl OnlineCodebook {
    /// A codebook for tokens of width `dim` in `scope` (`_embedding`, `_embedding_ptr`, `_track_num_batches`, `_dist_norm`,
    /// `_dist_norm_prev`). Words are normal draws without their negative part, of unit length.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &CodebookSettings, dim: usize) -> Result<Self> {
        let words = scope.constant("_embedding", &[settings.words, dim], &Init::Normal { std: 1.0 })?;
        assign(&words, &l2_normalize(&words.maximum(0.0)?, NORM_FLOOR)?)?;
        let pointer = scope.count("_embedding_ptr", &[1])?;
        let mut number = |name: &str, value| scope.constant(name, &[1], &Init::Constant(value));
        Ok(Self {
            words,
            pointer,
            steps: number("_track_num_batches", 0.0)?,
            distance: number("_dist_norm", FIRST_DISTANCE)?,
            frozen: number("_dist_norm_prev", FIRST_DISTANCE)?,
            settings: settings.clone(),
        })
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &CodebookSettings {
        &self.settings
    }

    /// A copy of the words, which a later update leaves alone.  [words, dim]
    ///
    /// # Errors
    /// A failing copy.
    pub fn words(&self) -> Result<Tensor> {
        Ok(self.words.copy()?)
    }

    /// The words in the codebook's own memory, which a later update overwrites.  [words, dim]
    #[must_use]
    pub fn shared_words(&self) -> &Tensor {
        &self.words
    }

    /// Where the next word goes.
    ///
    /// # Errors
    /// A pointer that was loaded and is negative.
    pub fn pointer(&self) -> Result<usize> {
        let pointer = self.pointer.to_vec1::<i64>()?[0];
        usize::try_from(pointer).map_err(|_| Error::State(format!("_embedding_ptr is {pointer}: must not be negative")))
    }

    /// The running mean similarity distance.
    ///
    /// # Errors
    /// A failing copy.
    pub fn distance(&self) -> Result<f64> {
        number(&self.distance)
    }

    /// What the cosines of a step are multiplied by: it changes with [`OnlineCodebook::push`] alone, so that both views
    /// of a step have the same, one step late.
    ///
    /// # Errors
    /// A failing copy.
    pub fn inverse_temperature(&self) -> Result<f64> {
        Ok(self.settings.inverse_temperature / number(&self.frozen)?)
    }

    /// Assigns patch tokens: `softmax(beta * cosine)`. Nothing is changed. Words count as they are stored,
    /// tokens by their direction.  tokens: [batch, patches, dim], no class token; any float dtype
    ///
    /// Source: MOCA, teacher: soft assignments; the temperature is that of the public code.
    ///
    /// # Errors
    /// No tokens, other patches or another width.
    pub fn assign(&self, tokens: &Tensor) -> Result<Assignments> {
        let tokens = l2_normalize(&self.checked(tokens)?, NORM_FLOOR)?;
        let beta = self.inverse_temperature()?;
        // Tokens are fewer numbers than scores.
        let scores = linear(&(tokens * beta)?, &self.words, None)?; // [batch, patches, words]
        let Softened { probabilities, entropies, leads } = soften(&scores)?;
        Ok(Assignments { targets: probabilities, entropies, leads: leads.iter().map(|lead| lead / beta).collect() })
    }

    /// Target of whole images: the mean assignment inside the border, made to sum to one again.
    /// [batch, patches, words] -> [batch, words]
    ///
    /// # Errors
    /// Other patches, or another number of words.
    pub fn image_targets(&self, targets: &Tensor) -> Result<Tensor> {
        let (patches, words) = (self.settings.grid.count(), self.settings.words);
        let batch = match *targets.dims() {
            [batch, p, k] if (p, k) == (patches, words) => batch,
            _ => return Err(Error::shape(OP, format!("targets [batch, {patches}, {words}]"), targets.dims())),
        };
        let mut share = vec![0.0; patches];
        for patch in &self.settings.interior {
            share[*patch as usize] = 1.0 / self.settings.interior.len() as f64;
        }
        let share = Tensor::from_vec(share, (1, 1, patches), targets.device())?.to_dtype(targets.dtype())?;
        let targets = targets.detach().contiguous()?;
        let mean = share.repeat((batch, 1, 1))?.matmul(&targets)?.squeeze(1)?; // [batch, words]
        let total = mean.abs()?.sum_keepdim(D::Minus1)?.maximum(NORM_FLOOR)?;
        Ok(mean.broadcast_div(&total)?)
    }

    /// Moves the running distance towards that of one view of a batch (the mean over all processes). Once a view and
    /// micro-batch; the temperature follows at the next [`OnlineCodebook::push`].
    ///
    /// # Errors
    /// A failing copy.
    pub fn observe(&mut self, distance: f64) -> Result<()> {
        set(&self.distance, MOMENTUM * self.distance()? + (1.0 - MOMENTUM) * distance)
    }

    /// The new words that `choice` means, of unit length; nothing is changed.  tokens of the chosen view:
    /// [batch, patches, dim], no class token -> [new words, dim]
    ///
    /// Source: MOCA, online codebook; farthest point sampling, its appendix (details ours).
    ///
    /// # Errors
    /// As [`OnlineCodebook::assign`], or a choice for another batch or another number of words.
    pub fn new_words(&self, choice: &Choice, tokens: &Tensor) -> Result<Tensor> {
        let tokens = self.checked(tokens)?;
        let (batch, patches, dim) = tokens.dims3()?;
        let rows = tokens.reshape((batch * patches, dim))?;
        let new = match &choice.words {
            Chosen::Tokens(places) => {
                let index = places.iter().map(|at| self.flat(*at, batch)).collect::<Result<Vec<_>>>()?;
                gather_rows(&rows, &index)?
            }
            Chosen::Means(images) => {
                let inside = self.inside(images, batch)?;
                let all = gather_rows(&rows, &inside)?;
                all.reshape((images.len(), self.settings.interior.len(), dim))?.mean(1)?
            }
            Chosen::Farthest(first) => {
                let every: Vec<u32> = (0..batch as u32).collect();
                let candidates = self.inside(&every, batch)?;
                let at = self.flat(*first, batch)?;
                let first = candidates.iter().position(|index| *index == at);
                let first =
                    first.ok_or_else(|| Error::argument(OP, format!("{:?} lies on the border", choice.words)))?;
                let candidates = l2_normalize(&gather_rows(&rows, &candidates)?, NORM_FLOOR)?;
                gather_rows(&candidates, &self.farthest(&candidates, first)?)?
            }
        };
        if new.dim(0)? != self.settings.new_words {
            return Err(Error::shape(OP, format!("{} new words", self.settings.new_words), new.dims()));
        }
        l2_normalize(&new, NORM_FLOOR)
    }

    /// Puts words in the place of the oldest ones, moves on, and lets the temperature follow the running distance: the
    /// end of an optimizer step. Where several processes train, all push the words of one of them.  [new words, dim]
    ///
    /// # Errors
    /// Words of another number or width.
    pub fn push(&mut self, new: &Tensor) -> Result<()> {
        let (words, count) = (self.settings.words, self.settings.new_words);
        if new.dims() != [count, self.words.dim(1)?] {
            return Err(Error::shape(OP, format!("{count} new words of width {}", self.words.dim(1)?), new.dims()));
        }
        let pointer = self.pointer()?;
        let places: Vec<u32> = (0..count).map(|i| ((pointer + i) % words) as u32).collect();
        let new = new.detach().to_dtype(self.words.dtype())?;
        assign(&self.words, &scatter_rows(&self.words, &places, &new)?)?;
        let next = ((pointer + count) % words) as i64;
        assign(&self.pointer, &Tensor::new(&[next], self.pointer.device())?)?;
        set(&self.steps, number(&self.steps)? + 1.0)?;
        assign(&self.frozen, &self.distance)
    }

    /// The tokens without a graph and in the dtype of the words.
    fn checked(&self, tokens: &Tensor) -> Result<Tensor> {
        let (patches, dim) = (self.settings.grid.count(), self.words.dim(1)?);
        match *tokens.dims() {
            [batch, p, d] if batch > 0 && (p, d) == (patches, dim) => {
                Ok(tokens.detach().to_dtype(self.words.dtype())?.contiguous()?)
            }
            _ => Err(Error::shape(OP, format!("at least one image, [batch, {patches}, {dim}]"), tokens.dims())),
        }
    }

    fn flat(&self, at: Place, batch: usize) -> Result<u32> {
        let patches = self.settings.grid.count();
        if at.image as usize >= batch || at.patch as usize >= patches {
            return Err(Error::argument(OP, format!("{at:?} of {batch} images of {patches} patches")));
        }
        Ok(at.image * patches as u32 + at.patch)
    }

    /// Flat indices of the patches inside the border of `images`.
    fn inside(&self, images: &[u32], batch: usize) -> Result<Vec<u32>> {
        let of = |image: &u32| {
            let image = *image;
            self.settings.interior.iter().map(move |patch| Place { image, patch: *patch })
        };
        images.iter().flat_map(of).map(|at| self.flat(at, batch)).collect()
    }

    /// Rows of `candidates` (of unit length), beginning with `first`: each next one is that whose largest cosine with
    /// those taken before is smallest.
    fn farthest(&self, candidates: &Tensor, first: usize) -> Result<Vec<u32>> {
        let values = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?) };
        let mut closest = match self.settings.include_codebook {
            true => values(&nearest(candidates, &self.words, Measure::Dot)?.values)?,
            false => vec![f64::NEG_INFINITY; candidates.dim(0)?],
        };
        let mut taken = vec![first as u32];
        while taken.len() < self.settings.new_words {
            let last = gather_rows(candidates, &taken[taken.len() - 1..])?; // [1, dim]
            let cosines = values(&linear(candidates, &last, None)?)?;
            closest.iter_mut().zip(cosines).for_each(|(closest, cosine)| *closest = closest.max(cosine));
            // A patch that was taken is at its own distance, one, but for rounding: it is not taken twice.
            taken.iter().for_each(|row| closest[*row as usize] = f64::INFINITY);
            let next = (0..closest.len()).min_by(|a, b| closest[*a].total_cmp(&closest[*b])).unwrap_or(first);
            taken.push(next as u32);
        }
        Ok(taken)
    }
}

fn number(of: &Tensor) -> Result<f64> {
    Ok(of.to_dtype(DType::F64)?.to_vec1()?[0])
}

fn set(target: &Tensor, value: f64) -> Result<()> {
    assign(target, &Tensor::new(&[value], target.device())?)
}

#[cfg(test)]
mod tests;
