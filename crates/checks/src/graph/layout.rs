//! Where everything stands: a layered drawing after Sugiyama, Tagawa and Toda (1981).
//!
//! Columns by depth; a long edge passes through a narrow slot of its own in every column between, so that it runs between
//! the boxes; within a column the order follows the neighbours' average, and heights are as near to the neighbours' as the
//! order allows (isotonic regression).

use super::{Edge, Graph, Node};

pub(super) const BOX_WIDTH: f64 = 216.0;
pub(super) const BOX_HEIGHT: f64 = 42.0;
const COLUMN_GAP: f64 = 72.0;
const ROW_GAP: f64 = 14.0;
const SLOT_HEIGHT: f64 = 10.0;
/// A column of more boxes than this is split, so that a flat suite does not become a tower.
const TALLEST_COLUMN: usize = 18;
const SWEEPS: usize = 12;

/// Centres of boxes and ways of edges. The picture begins at (0, 0).
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) width: f64,
    pub(super) height: f64,
    /// Left end and middle of each node.
    pub(super) places: Vec<(f64, f64)>,
    /// From the right end of the first box to the left end of the last one.
    pub(super) ways: Vec<Vec<(f64, f64)>>,
}

/// How far each is from what depends on nothing; ordered so that needs come first.
pub(super) fn depths(needs: &[Vec<usize>]) -> Vec<usize> {
    let mut depths: Vec<usize> = vec![0; needs.len()];
    for (index, needs) in needs.iter().enumerate() {
        depths[index] = needs
            .iter()
            .map(|need| depths[*need] + 1)
            .max()
            .unwrap_or(0);
    }
    depths
}

/// A box, or the slot of an edge that passes.
struct Piece {
    column: usize,
    height: f64,
    middle: f64,
    before: Vec<usize>,
    after: Vec<usize>,
}

pub(super) fn layout(graph: &Graph<'_>) -> Layout {
    let columns_of = columns(graph);
    let mut pieces: Vec<Piece> = columns_of
        .iter()
        .map(|&column| Piece {
            column,
            height: BOX_HEIGHT,
            middle: 0.0,
            before: Vec::new(),
            after: Vec::new(),
        })
        .collect();
    let chains: Vec<Vec<usize>> = graph
        .edges
        .iter()
        .map(|edge| chain(edge, &mut pieces))
        .collect();
    let count = columns_of.iter().max().map_or(0, |last| last + 1);
    let mut columns: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (index, piece) in pieces.iter().enumerate() {
        columns[piece.column].push(index);
    }
    order(&mut columns, &pieces);
    settle(&columns, &mut pieces);
    finish(graph, &pieces, &chains)
}

/// Depth, with tall columns split. Boxes that lead somewhere stand on the right of theirs, nearer to where they lead.
fn columns(graph: &Graph<'_>) -> Vec<usize> {
    let mut needs = vec![Vec::new(); graph.nodes.len()];
    let mut leads = vec![false; graph.nodes.len()];
    for edge in &graph.edges {
        needs[edge.to].push(edge.from);
        leads[edge.from] = true;
    }
    let depths = depths(&needs);
    let deepest = depths.iter().max().copied().unwrap_or(0);
    let mut columns = vec![0; graph.nodes.len()];
    let mut next = 0;
    for depth in 0..=deepest {
        let mut members: Vec<usize> = (0..graph.nodes.len())
            .filter(|index| depths[*index] == depth)
            .collect();
        members.sort_by_key(|index| leads[*index]);
        let parts = members.len().div_ceil(TALLEST_COLUMN).max(1);
        let each = members.len().div_ceil(parts).max(1);
        for (position, member) in members.into_iter().enumerate() {
            columns[member] = next + position / each;
        }
        next += parts;
    }
    columns
}

/// The pieces that an edge goes through, its ends included.
fn chain(edge: &Edge, pieces: &mut Vec<Piece>) -> Vec<usize> {
    let mut chain = vec![edge.from];
    for column in pieces[edge.from].column + 1..pieces[edge.to].column {
        chain.push(pieces.len());
        pieces.push(Piece {
            column,
            height: SLOT_HEIGHT,
            middle: 0.0,
            before: Vec::new(),
            after: Vec::new(),
        });
    }
    chain.push(edge.to);
    for pair in chain.windows(2) {
        pieces[pair[0]].after.push(pair[1]);
        pieces[pair[1]].before.push(pair[0]);
    }
    chain
}

/// Orders each column by the average position of its neighbours, from left to right and back.
fn order(columns: &mut [Vec<usize>], pieces: &[Piece]) {
    let mut position = vec![0.0; pieces.len()];
    let note = |column: &[usize], position: &mut Vec<f64>| {
        for (place, piece) in column.iter().enumerate() {
            // Relative, since columns are of different height.
            position[*piece] = (place as f64 + 0.5) / column.len() as f64;
        }
    };
    for column in columns.iter() {
        note(column, &mut position);
    }
    for sweep in 0..SWEEPS {
        let forward = sweep % 2 == 0;
        for step in 0..columns.len() {
            let index = if forward {
                step
            } else {
                columns.len() - 1 - step
            };
            let average = |piece: &usize| {
                let neighbours = if forward {
                    &pieces[*piece].before
                } else {
                    &pieces[*piece].after
                };
                if neighbours.is_empty() {
                    return position[*piece];
                }
                neighbours.iter().map(|other| position[*other]).sum::<f64>()
                    / neighbours.len() as f64
            };
            let mut keyed: Vec<(f64, usize)> = columns[index]
                .iter()
                .map(|piece| (average(piece), *piece))
                .collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            columns[index] = keyed.into_iter().map(|(_, piece)| piece).collect();
            note(&columns[index], &mut position);
        }
    }
}

/// Gives each piece its height: first stacked, then drawn towards its neighbours as far as the order allows.
fn settle(columns: &[Vec<usize>], pieces: &mut [Piece]) {
    for column in columns {
        let whole: f64 = column
            .iter()
            .map(|piece| pieces[*piece].height + ROW_GAP)
            .sum();
        let mut top = -whole / 2.0;
        for piece in column {
            pieces[*piece].middle = top + pieces[*piece].height / 2.0;
            top += pieces[*piece].height + ROW_GAP;
        }
    }
    for sweep in 0..SWEEPS {
        let forward = sweep % 2 == 0;
        for step in 0..columns.len() {
            let index = if forward {
                step
            } else {
                columns.len() - 1 - step
            };
            let wanted: Vec<f64> = columns[index]
                .iter()
                .map(|piece| wanted(&pieces[*piece], pieces))
                .collect();
            let heights: Vec<f64> = columns[index]
                .iter()
                .map(|piece| pieces[*piece].height)
                .collect();
            for (piece, middle) in columns[index]
                .iter()
                .zip(nearest_in_order(&wanted, &heights))
            {
                pieces[*piece].middle = middle;
            }
        }
    }
}

fn wanted(piece: &Piece, pieces: &[Piece]) -> f64 {
    let neighbours = piece.before.iter().chain(&piece.after);
    let count = piece.before.len() + piece.after.len();
    if count == 0 {
        return piece.middle;
    }
    neighbours.map(|other| pieces[*other].middle).sum::<f64>() / count as f64
}

/// The middles nearest to the wanted ones (least squares) that keep order and distance: pool adjacent violators.
fn nearest_in_order(wanted: &[f64], heights: &[f64]) -> Vec<f64> {
    let mut offsets = Vec::with_capacity(wanted.len());
    let mut offset = 0.0;
    for (index, height) in heights.iter().enumerate() {
        if index > 0 {
            offset += (heights[index - 1] + height) / 2.0 + ROW_GAP;
        }
        offsets.push(offset);
    }
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (want, offset) in wanted.iter().zip(&offsets) {
        let mut pool = (want - offset, 1);
        while let Some(&(before, count)) = pools.last()
            && before > pool.0
        {
            pools.pop();
            let all = count + pool.1;
            let mean = (before * count as f64 + pool.0 * pool.1 as f64) / all as f64;
            pool = (mean, all);
        }
        pools.push(pool);
    }
    let levels = pools
        .iter()
        .flat_map(|(mean, count)| std::iter::repeat_n(*mean, *count));
    levels
        .zip(&offsets)
        .map(|(level, offset)| level + offset)
        .collect()
}

fn finish(graph: &Graph<'_>, pieces: &[Piece], chains: &[Vec<usize>]) -> Layout {
    let top = pieces
        .iter()
        .map(|piece| piece.middle - piece.height / 2.0)
        .fold(f64::INFINITY, f64::min);
    let bottom = pieces
        .iter()
        .map(|piece| piece.middle + piece.height / 2.0)
        .fold(f64::NEG_INFINITY, f64::max);
    let left = |column: usize| column as f64 * (BOX_WIDTH + COLUMN_GAP);
    let place = |piece: &Piece| (left(piece.column), piece.middle - top);
    let columns = pieces
        .iter()
        .map(|piece| piece.column + 1)
        .max()
        .unwrap_or(1);
    let ways = chains.iter().map(|chain| {
        let mut way = Vec::new();
        for (step, index) in chain.iter().enumerate() {
            let (x, y) = place(&pieces[*index]);
            if step > 0 {
                way.push((x, y));
            }
            if step + 1 < chain.len() {
                way.push((x + BOX_WIDTH, y));
            }
        }
        way
    });
    Layout {
        width: left(columns) - COLUMN_GAP,
        height: bottom - top,
        places: pieces[..graph.nodes.len()].iter().map(place).collect(),
        ways: ways.collect(),
    }
}

pub(super) fn title(node: &Node<'_>) -> String {
    match node {
        Node::Check(row) => row.name.to_string(),
        Node::Group {
            label,
            count,
            verdict,
        } => format!("{label} ({count} {verdict})"),
    }
}
