//! Vision Transformer encoders: patch embedding, positions, registers, blocks.
//!
//! A [`Vit`] turns images, or some patches of them, into tokens; a [`PlainVit`] does so with a class token and layer norms.
//! Their blocks are public, because predictors and decoders (`heads`) are stacks of the same blocks. Parameter names are
//! those of the official CAPI checkpoints, or of the usual ViT. Sources: CAPI, encoder; MOCA, encoder.
//!
//! Invariants: tokens are `[registers or class, patches]`; coordinates are (row, column) in 0..=1; a frequency
//! table is used as stored, never recomputed; every forward pass says which rows stochastic depth keeps.
//! Not here: which patches are hidden (`masking`), predictors and heads (`heads`), losses, training.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use occlude_kernels::ParamStore;
//! use occlude_vit::{DropPath, GroupFactors, Vit, VitConfig};
//! # use occlude_random::Streams;
//! let config = VitConfig { dim: 32, depth: 2, heads: 2, patch: 4, registers: 4, ..VitConfig::default() };
//! let mut store = ParamStore::frozen(Streams::new(0), DType::F32, &Device::Cpu);
//! let factors = GroupFactors { patch_embed_lr: 0.2, norm_wd: 0.1 };
//! let vit = Vit::new(&mut store.root(), &config.check(16)?, factors)?;
//! let images = Tensor::zeros((2, 3, 16, 16), DType::F32, &Device::Cpu)?;
//! let seen = vit.forward(&images, Some(&[0, 5, 16, 31]), &mut DropPath::off())?; // two patches of each image
//! assert_eq!(seen.patches()?.dims(), [2, 2, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod block;
mod config;
mod coords;
mod drop_path;
mod embed;
mod features;
mod fine_tuning;
mod learned;
mod model;
mod parts;
mod plain;
mod positions;
mod resize;
mod sincos;

pub use attention::SelfAttention;
pub use block::{Block, BlockKind, BlockShape, NORM_EPS};
pub use config::{PositionKind, RegisterCoords, VitConfig, VitSettings, check_depth, check_heads, check_width};
pub use coords::{patch_coords, register_coords, scale_into_box};
pub use drop_path::{DropPath, DropPathKind, Kept};
pub use embed::{PatchEmbed, patch_pixels, patch_rows};
pub use features::{Extractor, Extras, Features};
pub use fine_tuning::fine_tuning_factors;
pub use learned::LearnedPositions;
pub use model::{Encoded, Vit};
pub use parts::{GroupFactors, LAYER_NORM_EPS, final_norm, layer_norm_weights, linear_map, linear_weight};
pub use plain::{PlainTokens, PlainVit, PlainVitConfig, PlainVitSettings, Sights, patches_of};
pub use positions::Positions;
pub use sincos::sincos_table;
