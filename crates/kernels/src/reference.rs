//! The operators once more in ordinary differentiable tensor operations: the tests' judge, never the fast path.

mod blocks;
mod dense;
mod rowwise;

pub use blocks::{block, two_stream_block};
pub use dense::{
    attention, gelu, linear, linear_with, nearest, packed_attention, position_angles, position_encode, relu,
};
pub use rowwise::{
    batch_norm, batch_norm_with, gather_rows, l2_normalize, layer_norm, pixel_loss, rms_norm, scatter_add_rows,
    scatter_rows, sinkhorn, soft_cross_entropy, softmax, weight_norm,
};
