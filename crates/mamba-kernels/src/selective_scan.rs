//! The selective scan over packed sequences, and its gradients (`cuda/selective_scan/`). Symbols and shapes as in the
//! mamba crate's `ops/selective_scan`: T tokens, `d_inner` channels, `d_state` states a channel, everything [token,
//! channel], channel innermost.

use std::sync::Arc;

use crate::batch::{Batch, List};
use crate::buffer::{Buffer, Float, Rows, RowsMut, States};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::{self, SCAN_BACKWARD_SHARED, ScanBackward, ScanForward, ScanSegment};

/// Tokens from a state that forward keeps to the next, and what segments are multiples of.
pub const CHUNK: usize = 64;
/// States of the fast kernels.
const FAST_STATES: usize = 16;
/// Channels of a block.
const TILE: usize = 64;
const NARROW: usize = 8;
/// Blocks that a multiprocessor holds, of the tile and of the backward kernel.
const RESIDENT: usize = 3;
/// Segments of a sequence that blocks chain themselves, without a launch for it.
const CARRY_INSIDE: usize = 16;

/// The arguments of [`forward`].
pub struct Forward<'a> {
    /// [T, d_inner].
    pub u: Rows<'a>,
    /// [T, d_inner], before bias and softplus.
    pub delta: Rows<'a>,
    /// [d_inner] f32; with it comes the softplus. `None`: delta is used as it is.
    pub delta_bias: Option<&'a Buffer>,
    /// [d_state, d_inner] f32, negative.
    pub a: &'a Buffer,
    /// [T, d_state].
    pub b: Rows<'a>,
    /// [T, d_state].
    pub c: Rows<'a>,
    /// [d_inner] f32.
    pub d: Option<&'a Buffer>,
    /// [T, d_inner].
    pub z: Option<Rows<'a>>,
    /// [d_state, d_inner] of each slot; `None` begins at zero and forgets the last state.
    pub state: Option<States<'a>>,
    /// y [T, d_inner].
    pub out: RowsMut<'a>,
    /// [`chunks`] × [d_state, d_inner] f32: the state before every 64th token, which [`backward`] needs.
    pub boundary: Option<&'a mut Buffer>,
    /// Never cut a sequence in time, so that results do not depend on what else is in the batch, to the bit.
    pub whole: bool,
}

/// The arguments of [`backward`]: what forward was given, the gradient of y, and where gradients go. All f32 gradients
/// are overwritten.
pub struct Backward<'a> {
    /// As given to [`forward`].
    pub u: Rows<'a>,
    /// As given to [`forward`].
    pub delta: Rows<'a>,
    /// As given to [`forward`].
    pub delta_bias: Option<&'a Buffer>,
    /// As given to [`forward`].
    pub a: &'a Buffer,
    /// As given to [`forward`].
    pub b: Rows<'a>,
    /// As given to [`forward`].
    pub c: Rows<'a>,
    /// As given to [`forward`].
    pub d: Option<&'a Buffer>,
    /// As given to [`forward`].
    pub z: Option<Rows<'a>>,
    /// As [`forward`] filled it.
    pub boundary: &'a Buffer,
    /// [T, d_inner]: gradient of y.
    pub out_grad: Rows<'a>,
    /// Gradient of the last state, in slots; `None`: zero. Its buffer is not written.
    pub last_state_grad: Option<States<'a>>,
    /// [T, d_inner].
    pub u_grad: RowsMut<'a>,
    /// [T, d_inner].
    pub delta_grad: RowsMut<'a>,
    /// [T, d_inner], where there is a z.
    pub z_grad: Option<RowsMut<'a>>,
    /// [T, d_state] f32.
    pub b_grad: RowsMut<'a>,
    /// [T, d_state] f32.
    pub c_grad: RowsMut<'a>,
    /// [d_state, d_inner] f32.
    pub a_grad: &'a mut Buffer,
    /// [d_inner] f32, where there is a d.
    pub d_grad: Option<&'a mut Buffer>,
    /// [d_inner] f32, where there is a bias.
    pub delta_bias_grad: Option<&'a mut Buffer>,
    /// Gradient of the initial state, in slots; zero for sequences that begin fresh.
    pub initial_state_grad: Option<States<'a>>,
}

/// Rows of [`Forward::boundary`] for a batch: every sequence's chunks of 64 tokens.
#[must_use]
pub fn chunks(batch: &Batch) -> usize {
    batch.cu_seqlens.windows(2).map(|pair| (pair[1] - pair[0]).div_ceil(CHUNK)).sum()
}

/// y and the last states.
///
/// # Errors
/// [`Error::Unsupported`] unless there are 1 to 256 states; [`Error::OutOfMemory`], [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn forward(device: &Device, batch: &Batch, op: Forward) -> Result<()> {
    let Forward { u, delta, delta_bias, a, b, c, d, z, state, out, boundary, whole } = op;
    let (tokens, channels, states, float) = (batch.tokens(), u.cols, b.cols, u.float());
    let inputs = [Some(u), Some(delta), z, Some(b), Some(c)];
    check(states, channels, inputs.iter().flatten().chain([&out.view()]))?;
    let fast = is_fast(states, channels, &inputs)
        && out.view().is_aligned(2 * float.bytes())
        && state.as_ref().is_none_or(|state| state.is_aligned(8));
    let plan = Plan::forward(device, batch, channels, fast, whole);
    let cut = plan.cut(device, batch)?;
    let segments = cut.segments;
    let workspace = device.workspace(if cut.split { segments * (states + 1) * channels } else { 0 })?;
    let state_stride = state.as_ref().map_or(0, |state| state.slot_stride) as i64;
    let state = state.map_or(0, |state| state.pointer(states * channels, batch.last_slot));
    let params = ScanForward {
        u: u.pointer(tokens, channels, float),
        delta: delta.pointer(tokens, channels, float),
        z: z.map_or(0, |z| z.pointer(tokens, channels, float)),
        b: b.pointer(tokens, states, float),
        c: c.pointer(tokens, states, float),
        y: out.pointer(tokens, channels, float),
        a: a.f32s(states * channels, "A"),
        d: d.map_or(0, |d| d.f32s(channels, "D")),
        delta_bias: delta_bias.map_or(0, |bias| bias.f32s(channels, "the bias of delta")),
        initial_state: state,
        last_state: state,
        boundary_state: boundary
            .map_or(0, |kept| kept.f32s(chunks(batch) * states * channels, "kept states")),
        segment_state: if cut.split { workspace } else { 0 },
        segment_delta: if cut.split { workspace + 4 * (segments * states * channels) as u64 } else { 0 },
        segments: cut.pointer(),
        first_segment: cut.first_segment(),
        u_stride: u.stride as i64,
        delta_stride: delta.stride as i64,
        z_stride: z.map_or(0, |z| z.stride) as i64,
        b_stride: b.stride as i64,
        c_stride: c.stride as i64,
        y_stride: out.stride as i64,
        state_stride,
        segment_count: segments as i32,
        channels: channels as i32,
        states: states as i32,
        softplus: i32::from(delta_bias.is_some()),
        carry_inside: i32::from(cut.carry_inside),
        ..ScanForward::default()
    };
    let shared = params::scan_forward_tile_shared(float.bytes());
    let (names, grid) = match plan.path {
        Path::Generic => {
            let grid = Grid::new([channels.div_ceil(generic_channels(states)), segments, 1], 32);
            return device.launch(generic("selective_scan_generic_forward", float, states), grid, &params);
        }
        Path::Tile => (
            ["selective_scan_forward_local", "selective_scan_forward_tile"],
            Grid::new([channels.div_ceil(TILE), segments, 1], 128).shared(shared),
        ),
        Path::Narrow => (
            ["selective_scan_forward_narrow_local", "selective_scan_forward_narrow"],
            Grid::new([channels.div_ceil(NARROW), segments, 1], 128),
        ),
    };
    if cut.split {
        device.launch(Kernel::of(names[0], float), grid, &params)?;
        if !cut.carry_inside {
            let grid = Grid::new([channels.div_ceil(32), FAST_STATES, batch.sequences()], 32);
            device.launch(Kernel::plain("selective_scan_forward_carry"), grid, &params)?;
        }
    }
    device.launch(Kernel::of(names[1], float), grid.behind(cut.split && cut.carry_inside), &params)
}

/// All gradients.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn backward(device: &Device, batch: &Batch, op: Backward) -> Result<()> {
    let Backward { u, delta, delta_bias, a, b, c, d, z, boundary, out_grad, .. } = op;
    let Backward { last_state_grad, u_grad, delta_grad, z_grad, b_grad, c_grad, initial_state_grad, .. } = op;
    let (tokens, channels, states, float) = (batch.tokens(), u.cols, b.cols, u.float());
    assert!(z.is_some() == z_grad.is_some() && d.is_some() == op.d_grad.is_some(), "gradients of z and D");
    assert!(delta_bias.is_some() == op.delta_bias_grad.is_some(), "the gradient of the bias of delta");
    let outputs = [Some(u_grad.view()), Some(delta_grad.view()), z_grad.as_ref().map(RowsMut::view)];
    let inputs = [Some(u), Some(delta), z, Some(b), Some(c), Some(out_grad)];
    check(states, channels, inputs.iter().chain(&outputs).flatten())?;
    let fast = is_fast(states, channels, &inputs)
        && outputs.iter().flatten().all(|rows| rows.is_aligned(2 * float.bytes()))
        && [&last_state_grad, &initial_state_grad].into_iter().flatten().all(|state| state.is_aligned(8));
    let plan = Plan::backward(device, batch, channels, fast);
    let cut = plan.cut(device, batch)?;
    let (segments, blocks) = (cut.segments, channels.div_ceil(TILE));
    let partials = if fast { blocks } else { channels.div_ceil(generic_channels(states)).min(32) };

    // Parts of the workspace, in f32.
    let mut end = 0;
    let mut part = |elements: usize| {
        let begin = end;
        end += elements.next_multiple_of(4); // rows of 16 bytes
        begin
    };
    let segment_state = part(if cut.split { segments * states * channels } else { 0 });
    let segment_delta = part(if cut.split { segments * channels } else { 0 });
    let state_scratch = part(if fast { segments * blocks * 16384 } else { 0 });
    let bc_partial = part(partials * tokens * 2 * states);
    let a_partial = part(segments * states * channels);
    let d_partial = part(segments * channels);
    let bias_partial = part(segments * channels);
    let workspace = device.workspace(end)?;
    let at = |part: usize| workspace + 4 * part as u64;

    let slots = |state: Option<States>| {
        let stride = state.as_ref().map_or(0, |state| state.slot_stride);
        (state.map_or(0, |state| state.pointer(states * channels, batch.last_slot)), stride)
    };
    let ((last_state_grad, last_stride), (initial_state_grad, initial_stride)) =
        (slots(last_state_grad), slots(initial_state_grad));
    assert!(
        last_state_grad == 0 || initial_state_grad == 0 || last_stride == initial_stride,
        "the states' gradients have one stride"
    );
    let params = ScanBackward {
        u: u.pointer(tokens, channels, float),
        delta: delta.pointer(tokens, channels, float),
        z: z.map_or(0, |z| z.pointer(tokens, channels, float)),
        b: b.pointer(tokens, states, float),
        c: c.pointer(tokens, states, float),
        dy: out_grad.pointer(tokens, channels, float),
        du: u_grad.pointer(tokens, channels, float),
        ddelta: delta_grad.pointer(tokens, channels, float),
        dz: z_grad.as_ref().map_or(0, |z| z.pointer(tokens, channels, float)),
        a: a.f32s(states * channels, "A"),
        d: d.map_or(0, |d| d.f32s(channels, "D")),
        delta_bias: delta_bias.map_or(0, |bias| bias.f32s(channels, "the bias of delta")),
        boundary_state: boundary.f32s(chunks(batch) * states * channels, "kept states"),
        last_state_grad,
        initial_state_grad,
        segment_state: if cut.split { at(segment_state) } else { 0 },
        segment_delta: if cut.split { at(segment_delta) } else { 0 },
        state_scratch: at(state_scratch),
        bc_partial: at(bc_partial),
        a_partial: at(a_partial),
        d_partial: at(d_partial),
        bias_partial: at(bias_partial),
        db: b_grad.pointer(tokens, states, Float::F32),
        dc: c_grad.pointer(tokens, states, Float::F32),
        da: op.a_grad.f32s(states * channels, "the gradient of A"),
        dd: op.d_grad.map_or(0, |d| d.f32s(channels, "the gradient of D")),
        dbias: op.delta_bias_grad.map_or(0, |bias| bias.f32s(channels, "the gradient of the bias")),
        segments: cut.pointer(),
        first_segment: cut.first_segment(),
        u_stride: u.stride as i64,
        delta_stride: delta.stride as i64,
        z_stride: z.map_or(0, |z| z.stride) as i64,
        b_stride: b.stride as i64,
        c_stride: c.stride as i64,
        dy_stride: out_grad.stride as i64,
        du_stride: u_grad.stride as i64,
        ddelta_stride: delta_grad.stride as i64,
        dz_stride: z_grad.as_ref().map_or(0, |z| z.stride) as i64,
        db_stride: b_grad.stride as i64,
        dc_stride: c_grad.stride as i64,
        state_stride: last_stride.max(initial_stride) as i64,
        tokens: tokens as i64,
        segment_count: segments as i32,
        channels: channels as i32,
        states: states as i32,
        softplus: i32::from(delta_bias.is_some()),
        partials: partials as i32,
        carry_inside: i32::from(cut.carry_inside),
    };
    if plan.path == Path::Generic {
        let lanes = 1 << generic_index(states);
        let grid = Grid::new([partials, segments, 1], 32).shared(params::scan_generic_backward_shared(lanes));
        device.launch(generic("selective_scan_generic_backward", float, states), grid, &params)?;
    } else {
        let grid = Grid::new([blocks, segments, 1], 128);
        if cut.split {
            device.launch(Kernel::of("selective_scan_backward_local", float), grid, &params)?;
            if !cut.carry_inside {
                let grid = Grid::new([channels.div_ceil(32), FAST_STATES, batch.sequences()], 32);
                device.launch(Kernel::plain("selective_scan_backward_carry"), grid, &params)?;
            }
        }
        let grid = grid.shared(SCAN_BACKWARD_SHARED).behind(cut.split && cut.carry_inside);
        device.launch(Kernel::of("selective_scan_backward", float), grid, &params)?;
    }
    let reduce = (tokens * 2 * states).div_ceil(128) + (states + 2) * channels.div_ceil(128);
    let grid = Grid::new([reduce, 1, 1], 128).behind(true);
    device.launch(Kernel::plain("selective_scan_reduce"), grid, &params)
}

fn check<'a>(states: usize, channels: usize, rows: impl IntoIterator<Item = &'a Rows<'a>>) -> Result<()> {
    Error::check("d_state", states, 1..=256, "1 to 256")?;
    Error::check("d_inner", channels, 1..=1 << 26, "1 to 67108864")?;
    let stride = rows.into_iter().map(|rows| rows.stride).max().unwrap_or(0);
    Error::check("elements from a row to the next", stride, 0..=i32::MAX as usize, "below 2147483648")
}

/// Whether the kernels for 16 states take these inputs.
fn is_fast(states: usize, channels: usize, inputs: &[Option<Rows>]) -> bool {
    states == FAST_STATES
        && inputs.iter().flatten().all(|rows| rows.is_aligned(16))
        && inputs.iter().flatten().all(|rows| (channels * rows.float().bytes()).is_multiple_of(16))
}

/// The instance of generic.cu with room for so many states.
fn generic_index(states: usize) -> usize {
    states.div_ceil(32).next_power_of_two().ilog2() as usize
}

fn generic(base: &'static str, float: Float, states: usize) -> Kernel {
    Kernel { base, float: Some(float), variant: Some(1 << generic_index(states)) }
}

/// Channels of a warp of generic.cu.
fn generic_channels(states: usize) -> usize {
    32 / states.next_power_of_two().min(32)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Tile,
    Narrow,
    Generic,
}

/// How a call runs: the kernel, and into how many segments the longest sequence is cut (others into segments of the
/// same length). Shrinking segments are ceil(rest / pieces) each: long ones first and 64 tokens last, so that all
/// multiprocessors end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    path: Path,
    pieces: usize,
    shrinking: bool,
}

impl Plan {
    fn whole(path: Path) -> Self {
        Self { path, pieces: 1, shrinking: false }
    }

    /// Time is cut where there are too few channels to fill the device (docs/kernels.md has the measurements).
    fn forward(device: &Device, batch: &Batch, channels: usize, fast: bool, whole: bool) -> Self {
        if !fast {
            return Self::whole(Path::Generic);
        }
        let (sequences, chunks) = size(batch);
        let (blocks, room) = (channels.div_ceil(TILE) * sequences, RESIDENT * device.multiprocessors());
        if whole || 2 * blocks >= room {
            Self::whole(Path::Tile)
        } else if chunks < 4 || 8 * blocks >= room {
            Self::whole(Path::Narrow)
        } else {
            Self { path: Path::Tile, pieces: (2 * room / blocks).min(chunks / 2), shrinking: false }
        }
    }

    fn backward(device: &Device, batch: &Batch, channels: usize, fast: bool) -> Self {
        if !fast {
            return Self::whole(Path::Generic);
        }
        let (sequences, chunks) = size(batch);
        let (blocks, room) = (channels.div_ceil(TILE) * sequences, RESIDENT * device.multiprocessors());
        if 2 * blocks >= room || chunks < 2 {
            Self::whole(Path::Tile)
        } else if 8 * blocks >= room {
            Self { path: Path::Tile, pieces: room.div_ceil(blocks), shrinking: true }
        } else {
            Self { path: Path::Tile, pieces: (4 * room / blocks).min(chunks / 2).max(1), shrinking: false }
        }
    }

    /// The batch's segments, from the last call where it was cut alike.
    fn cut(self, device: &Device, batch: &Batch) -> Result<Arc<Cut>> {
        let mut last = batch.cut.borrow_mut();
        if let Some(cut) = &*last
            && (cut.pieces, cut.shrinking) == (self.pieces, self.shrinking)
        {
            return Ok(cut.clone());
        }
        let cut = Arc::new(Cut::new(device, batch, self)?);
        *last = Some(cut.clone());
        Ok(cut)
    }
}

/// Sequences that are not empty (at least 1), and the longest one's chunks.
fn size(batch: &Batch) -> (usize, usize) {
    let lengths = batch.cu_seqlens.windows(2).map(|pair| pair[1] - pair[0]);
    let sequences = lengths.clone().filter(|length| *length > 0).count().max(1);
    (sequences, lengths.max().unwrap_or(0).div_ceil(CHUNK))
}

/// The segments of a batch, on the device.
pub(crate) struct Cut {
    pieces: usize,
    shrinking: bool,
    segments: usize,
    split: bool,
    carry_inside: bool,
    /// Segments, then where each sequence's begin.
    list: List,
}

impl Cut {
    fn new(device: &Device, batch: &Batch, plan: Plan) -> Result<Self> {
        let (_, longest) = size(batch);
        let equal = longest.div_ceil(plan.pieces).max(1) * CHUNK;
        let (mut segments, mut first_segment) = (Vec::new(), Vec::new());
        let (mut chunk, mut carry_inside) = (0, true);
        for (sequence, range) in batch.cu_seqlens.windows(2).enumerate() {
            let (begin, end) = (range[0], range[1]);
            first_segment.push(segments.len() as i32);
            let mut at = begin;
            loop {
                let length = match plan.shrinking {
                    true => (end - at).div_ceil(CHUNK).div_ceil(plan.pieces) * CHUNK,
                    false => equal,
                };
                let stop = end.min(at + length);
                segments.push(ScanSegment {
                    begin: at as i32,
                    end: stop as i32,
                    sequence: sequence as i32,
                    slot: batch.slots[sequence] as i32,
                    chunk: chunk as i32,
                    first: i32::from(at == begin),
                    last: i32::from(stop == end),
                    fresh: i32::from(batch.fresh[sequence]),
                });
                chunk += (stop - at).div_ceil(CHUNK);
                at = stop;
                if at == end {
                    break;
                }
            }
            carry_inside &= segments.len() - first_segment[sequence] as usize <= CARRY_INSIDE;
        }
        first_segment.push(segments.len() as i32);
        let mut values: Vec<i32> = segments
            .iter()
            .flat_map(|s| [s.begin, s.end, s.sequence, s.slot, s.chunk, s.first, s.last, s.fresh])
            .collect();
        const { assert!(size_of::<ScanSegment>() == size_of::<[i32; 8]>()) };
        values.extend(&first_segment);
        Ok(Self {
            pieces: plan.pieces,
            shrinking: plan.shrinking,
            segments: segments.len(),
            split: segments.len() > batch.sequences(),
            carry_inside,
            list: device.list(&values)?,
        })
    }

    fn pointer(&self) -> u64 {
        self.list.pointer(0)
    }

    fn first_segment(&self) -> u64 {
        self.list.pointer(8 * self.segments)
    }
}
