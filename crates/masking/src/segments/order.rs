//! The order in which segments are predicted, and who sees whom.

use occlude_random::{RngCore, choose};

/// A random order of the nodes below a hierarchy in which the nodes of every group are neighbours, at every level: groups of
/// the highest level are shuffled, then what is inside each, down to the nodes. `levels[l][node]` is the group of a node of level
/// `l`; with no level all `nodes` are shuffled. Source: RandSAC, hierarchical serialisation.
pub fn traversal<R: RngCore + ?Sized>(nodes: usize, levels: &[Vec<u32>], rng: &mut R) -> Vec<u32> {
    let top = levels.last().map_or(nodes, |groups| groups.iter().max().map_or(0, |last| *last as usize + 1));
    let mut order: Vec<u32> = (0..top as u32).collect();
    choose(rng, &mut order, top);
    for groups in levels.iter().rev() {
        let mut below = Vec::with_capacity(groups.len());
        for group in order {
            let mut members: Vec<u32> =
                (0..groups.len() as u32).filter(|node| groups[*node as usize] == group).collect();
            let count = members.len();
            choose(rng, &mut members, count);
            below.append(&mut members);
        }
        order = below;
    }
    order
}

/// Place in `order` of the segment of each cell. `order` holds every segment once.
#[must_use]
pub fn ranks(segments: &[u32], order: &[u32]) -> Vec<u32> {
    let mut place = vec![0; order.len()];
    for (rank, segment) in order.iter().enumerate() {
        place[*segment as usize] = rank as u32;
    }
    segments.iter().map(|segment| place[*segment as usize]).collect()
}

/// Whether a token of rank `query` sees the content of one of rank `key`: its own segment and those before. Encoder and decoder
/// self-attention, content stream. Source: RandSAC, source mask.
#[must_use]
pub fn sees_content(query: u32, key: u32) -> bool {
    key <= query
}

/// Whether what is predicted for a token of rank `query` sees one of rank `key`: earlier segments only; the first, which has none
/// before it, sees itself. Cross-attention, query stream. Source: RandSAC, memory mask.
#[must_use]
pub fn sees_memory(query: u32, key: u32) -> bool {
    key < query || (query == 0 && key == 0)
}
