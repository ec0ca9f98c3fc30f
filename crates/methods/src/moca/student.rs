//! The student: encoder, decoders, and the generators of what their output is compared with.

use super::config::{LocalSettings, MocaSettings};
use super::targets::Goal;
use super::{GlobalToken, LocTarget};
use crate::pixels::PIXEL_EPS;
use candle_core::{Tensor, Var};
use occlude_heads::{Decoder, DecoderInput, DecoderSettings, Generated, Generator, TargetHead, WordStatistics};
use occlude_kernels::{Error, Gradients, Result, Scope, gather_rows, pixel_loss};
use occlude_losses::cosine_distance;
use occlude_masking::Round;
use occlude_vit::{DropPath, PlainVit, patch_pixels, patches_of};

/// What the names of the decoder's parameters end with, in the official checkpoints.
const DECODER_NAMES: &str = "_cls_pt";

/// Encoder, generator of the image loss, and what the local loss needs.
#[derive(Clone, Debug)]
pub struct Student {
    encoder: PlainVit,
    generator: Generator,
    local: Option<Local>,
    global_token: GlobalToken,
}

#[derive(Clone, Debug)]
struct Local {
    target: LocTarget,
    generator: Option<Generator>, // where targets are assignments
    speakers: Vec<Speaker>,
    /// The block that a condenser reads, unless it is the last one.
    taps: Vec<usize>,
}

/// A decoder with its head, if its targets are no assignments.
#[derive(Clone, Debug)]
struct Speaker {
    decoder: Decoder,
    plain: bool,
    head: Option<TargetHead>,
}

/// What the generators make of the codebook of a step.
#[derive(Clone, Debug)]
pub struct Prototypes {
    /// Of the image loss.  [words, dim]
    pub image: Generated,
    /// Of the local loss, where its targets are assignments.  [words, decoder dim]
    pub local: Option<Generated>,
}

/// What the generators' running statistics move by.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    image: WordStatistics,
    local: Option<WordStatistics>,
}

impl Prototypes {
    /// The same prototypes as variables of their own: the graph of the generators ends here.
    pub(super) fn leaves(&self) -> Result<Self> {
        let leaf = |of: &Generated| -> Result<Generated> {
            let prototypes = Var::from_tensor(&of.prototypes.detach())?.into_inner();
            Ok(Generated { prototypes, statistics: of.statistics.clone() })
        };
        Ok(Self { image: leaf(&self.image)?, local: self.local.as_ref().map(leaf).transpose()? })
    }

    /// Takes what the losses of all rounds handed to the `leaves`, and adds what it makes of the generators' parameters.
    pub(super) fn backward(&self, leaves: &Self, gradients: &mut Gradients) -> Result<()> {
        let pairs = [(Some(&self.image), Some(&leaves.image)), (self.local.as_ref(), leaves.local.as_ref())];
        for (made, leaf) in pairs.into_iter().filter_map(|(made, leaf)| made.zip(leaf)) {
            if let Some(gradient) = gradients.take(&leaf.prototypes) {
                gradients.add(&(&made.prototypes * gradient)?.sum_all()?)?;
            }
        }
        Ok(())
    }

    pub(super) fn statistics(&self) -> Statistics {
        let local = self.local.as_ref().map(|local| local.statistics.clone());
        Statistics { image: self.image.statistics.clone(), local }
    }
}

/// What the student says about images of which it sees a part.
#[derive(Clone, Debug)]
pub struct Said {
    /// The global embedding.  [rows, dim]
    pub global: Tensor,
    /// What each decoder says about the patches `round.decoded()`.  [rows * decode, decoder dim]
    pub patches: Vec<Tensor>,
}

/// Losses of a round: scalars, unweighted.
#[derive(Clone, Debug)]
pub struct RoundLosses {
    /// Of whole images.
    pub image: Tensor,
    /// Of patches, the sum over decoders; none where there is no decoder.
    pub local: Option<Tensor>,
}

impl Student {
    /// A student whose parameters lie in `scope` (`encoder`, `encoder_pred`, those of [`Decoder`], `decoder_pred` or a head of
    /// the target; those of a second decoder under `plain`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &MocaSettings) -> Result<Self> {
        let dim = settings.encoder.dim();
        let encoder = PlainVit::new(&mut scope.sub("encoder"), &settings.encoder)?;
        let generator = Generator::new(&mut scope.sub("encoder_pred"), &settings.generator, dim)?;
        let local = settings.local.as_ref().map(|local| Local::new(scope, settings, local)).transpose()?;
        Ok(Self { encoder, generator, local, global_token: settings.global_token })
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &PlainVit {
        &self.encoder
    }

    /// The prototypes of a codebook: once a step.  [words, dim]
    ///
    /// # Errors
    /// Another width.
    pub fn prototypes(&self, words: &Tensor) -> Result<Prototypes> {
        let local = self.local.as_ref().and_then(|local| local.generator.as_ref());
        let local = local.map(|generator| generator.generate(words)).transpose()?;
        Ok(Prototypes { image: self.generator.generate(words)?, local })
    }

    /// Moves the generators' running statistics by those of a step.
    pub(super) fn observe(&mut self, of: &Statistics) -> Result<()> {
        self.generator.observe(&of.image)?;
        let local = self.local.as_mut().and_then(|local| local.generator.as_mut());
        local.zip(of.local.as_ref()).map_or(Ok(()), |(generator, of)| generator.observe(of))
    }

    /// Encodes what a round shows and decodes what it asks for.  images: [rows, 3, side, side]
    ///
    /// # Errors
    /// Images or a round that do not fit.
    pub fn say(&self, images: &Tensor, round: &Round) -> Result<Said> {
        let taps = self.local.as_ref().map_or(&[][..], |local| &local.taps);
        let seen = self.encoder.forward(images, Some(&round.visible()), taps, &mut DropPath::off())?;
        let (class, last) = (seen.class()?, seen.patches()?); // [rows, dim], [rows, keep, dim]
        let global = match self.global_token {
            GlobalToken::Avg => last.mean(1)?,
            GlobalToken::Cls => class.clone(),
        };
        let tapped = seen.tapped.first().map_or_else(|| Ok(last.clone()), patches_of)?;
        let speakers = self.local.iter().flat_map(|local| &local.speakers);
        let patches = speakers.map(|speaker| match speaker.plain {
            true => speaker.decoder.forward(&class, &last, round),
            false => speaker.decoder.forward(&global, &tapped, round),
        });
        Ok(Said { patches: patches.collect::<Result<_>>()?, global })
    }

    /// How far what was said in a round is from the targets.  images as in [`Student::say`]
    ///
    /// # Errors
    /// A goal or prototypes of another batch or codebook.
    pub fn losses(
        &self,
        said: &Said,
        (images, round): (&Tensor, &Round),
        goal: &Goal,
        prototypes: &Prototypes,
    ) -> Result<RoundLosses> {
        // Divergences: the entropies of the targets are known.
        let cross = self.generator.cross_entropy(&said.global, &prototypes.image.prototypes, &goal.images, None)?;
        let image = (cross - goal.image_entropy)?;
        let Some(local) = &self.local else { return Ok(RoundLosses { image, local: None }) };
        let truth = local.truth((images, round), goal, self.encoder.settings().patch())?;
        let mut sum: Option<Tensor> = None;
        for (speaker, said) in local.speakers.iter().zip(&said.patches) {
            let loss = local.loss(speaker, said, (round, goal), truth.as_ref(), prototypes)?;
            sum = Some(sum.map_or_else(|| Ok(loss.clone()), |sum| sum + &loss)?);
        }
        Ok(RoundLosses { image, local: sum })
    }
}

impl Local {
    fn new(scope: &mut Scope<'_>, settings: &MocaSettings, local: &LocalSettings) -> Result<Self> {
        let speaker = |scope: &mut Scope<'_>, decoder: &DecoderSettings| -> Result<Speaker> {
            let (dim, encoder) = (decoder.dim(), &settings.encoder);
            let plain = decoder.input() == DecoderInput::Plain;
            let decoder = Decoder::new(scope, decoder, DECODER_NAMES)?;
            let head = match local.target {
                LocTarget::Assign => None,
                LocTarget::Pixels => Some(TargetHead::pixels(scope, dim, encoder.patch())?),
                LocTarget::Embeddings => Some(TargetHead::embeddings(scope, dim, encoder.dim())?),
            };
            Ok(Speaker { decoder, plain, head })
        };
        let mut speakers = vec![speaker(scope, &local.decoder)?];
        if let Some(second) = &local.second {
            speakers.push(speaker(&mut scope.sub("plain"), second)?);
        }
        let generator = (local.target == LocTarget::Assign)
            .then(|| Generator::new(&mut scope.sub("decoder_pred"), &settings.generator, local.decoder.dim()))
            .transpose()?;
        let tapped = local.intermediate < settings.encoder.depth();
        let taps = if tapped { vec![local.intermediate] } else { Vec::new() };
        Ok(Self { target: local.target, generator, speakers, taps })
    }

    /// What the patches of a round really are: tokens of those decoded, pixels of the hidden ones; assignments are read
    /// where they lie.  [rows * decode, dim], or [rows * (decode - keep), 3 * patch * patch]
    fn truth(&self, (images, round): (&Tensor, &Round), goal: &Goal, patch: usize) -> Result<Option<Tensor>> {
        match self.target {
            LocTarget::Assign => Ok(None),
            LocTarget::Embeddings => gather_rows(&goal.patches, &round.decoded()).map(Some),
            LocTarget::Pixels => patch_pixels(images, patch, Some(&round.masked())).map(Some),
        }
    }

    /// The loss of one decoder, a scalar.  said: [rows * decode, decoder dim]
    fn loss(
        &self,
        speaker: &Speaker,
        said: &Tensor,
        (round, goal): (&Round, &Goal),
        truth: Option<&Tensor>,
        prototypes: &Prototypes,
    ) -> Result<Tensor> {
        match (self.target, &speaker.head, &self.generator, &prototypes.local, truth) {
            (LocTarget::Assign, None, Some(generator), Some(made), _) => {
                let decoded = round.decoded();
                let cross = generator.cross_entropy(said, &made.prototypes, &goal.patches, Some(&decoded))?;
                Ok((cross - goal.entropy(Some(&decoded)))?)
            }
            (LocTarget::Pixels, Some(head), _, _, Some(truth)) => {
                let guess = head.forward(&gather_rows(said, &round.masked_rows())?)?;
                Ok(pixel_loss(&guess, &truth.to_dtype(guess.dtype())?, Some(PIXEL_EPS))?.mean_all()?)
            }
            (LocTarget::Embeddings, Some(head), _, _, Some(truth)) => cosine_distance(&head.forward(said)?, truth),
            _ => Err(Error::argument("moca", "prototypes without those of the local loss")),
        }
    }
}
