//! A whole layer's decode step, and the head's (`cuda/block_step/`): one token of each of some sequences, every weight read
//! once, each kernel of ours asking for its weights while the one before still runs. Few sequences take four kernels a layer,
//! up to [`STEP_MANY_ROWS`] the norm and four kernels for many; what has more, or another card, leaves the large products to
//! cuBLAS.

use crate::batch::Batch;
use crate::buffer::{Buffer, Float, Rows, RowsMut, States};
use crate::causal_conv1d;
use crate::decode_step;
use crate::device::{Device, Grid, Kernel};
use crate::error::Result;
use crate::linear::{self, Weight};
use crate::norm;
use crate::params::{
    self, STEP_CHANNELS, STEP_DEEP, STEP_FEW as FEW, STEP_MANY_CHANNELS, STEP_MANY_ROWS, STEP_MANY_SPLITS,
    STEP_SHORT, STEP_SPLITS, STEP_STATES, StepConvolution, StepHead, StepInProj, StepInProjMany, StepOutProj,
    StepProductMany, StepScan, StepXProj,
};
use crate::tensor_map::TensorMap;

/// Rows (sequences) that the kernels for few take at most, the head's too.
pub const MAX_ROWS: usize = 16;
/// Rows times channels of a step at most that leaves the large products to cuBLAS: of more, x_proj and dt_proj by cuBLAS, too,
/// and a scan that does nothing else, are faster.
pub const MOST: usize = 64 * 5120;
const THREADS: u32 = 256;
/// Outputs of a block of x_proj for many rows.
const X_PROJ_TILE: usize = 16;
/// What the kernels that normalize have besides, for 16 rows: the warps' sums and the rows' scales.
const STATIC_SHARED: usize = 18 << 10;
const MAX_DT_RANK: usize = 256;
const MAX_D_CONV: usize = 4;

/// The arguments of [`run`]. R sequences, E = d_inner channels, N = d_state.
pub struct BlockStep<'a> {
    /// [d_model] f32: RMSNorm's weight.
    pub norm: &'a Buffer,
    /// Added under the root.
    pub eps: f32,
    /// [2E, d_model]: x, then z.
    pub in_proj: &'a Weight,
    /// [d_conv, E] f32.
    pub conv_weight: &'a Buffer,
    /// [E] f32.
    pub conv_bias: Option<&'a Buffer>,
    /// [dt_rank + 2N, E]: dt, B, C.
    pub x_proj: &'a Weight,
    /// [E, dt_rank].
    pub dt_proj: &'a Weight,
    /// [E] f32.
    pub delta_bias: &'a Buffer,
    /// [N, E] f32, negative.
    pub a: &'a Buffer,
    /// [E] f32.
    pub d: &'a Buffer,
    /// [d_model, E].
    pub out_proj: &'a Weight,
    /// conv_state [d_conv - 1, E], right behind it ssm_state [N, E].
    pub state: States<'a>,
    /// Width of the convolution.
    pub d_conv: usize,
    /// Whether another layer's step lies right before this one; else this is the first layer.
    pub follows: bool,
    /// [R, d_model] f32, without gaps; what the layer adds is added.
    pub residual: RowsMut<'a>,
    /// [R, d_model], for the kernels' use.
    pub hidden: RowsMut<'a>,
    /// [R, E], without gaps, for the kernels' use.
    pub u: RowsMut<'a>,
    /// [R, 2E], for the kernels' use.
    pub xz: RowsMut<'a>,
    /// [R, E], without gaps, for the kernels' use.
    pub y: RowsMut<'a>,
}

impl BlockStep<'_> {
    /// Whether the kernels run on this card and take these shapes and types; [`run`] expects it.
    #[must_use]
    pub fn is_supported(&self, device: &Device) -> bool {
        let (channels, dt_rank) = (self.channels(), self.dt_proj.inputs);
        let aligned = [&self.residual, &self.u, &self.xz, &self.y];
        takes(device, self.in_proj)
            && (self.is_for_many(device) || self.residual.rows * channels <= MOST)
            && channels.is_multiple_of(STEP_CHANNELS)
            && dt_rank.is_multiple_of(8)
            && dt_rank <= MAX_DT_RANK
            && self.x_proj.outputs == dt_rank + 2 * STEP_STATES
            && (2..=MAX_D_CONV).contains(&self.d_conv)
            && aligned.iter().all(|rows| rows.view().is_aligned(16))
    }

    /// Whether the kernels for few rows take them: they and their weights have to fit a multiprocessor's shared memory.
    fn is_for_few(&self, device: &Device) -> bool {
        let ring = params::step_ring(STEP_DEEP, params::step_chunks(self.channels()));
        fits(device, self.residual.rows, self.in_proj) && ring + STATIC_SHARED <= device.shared_memory()
    }

    /// Whether those for many do.
    fn is_for_many(&self, device: &Device) -> bool {
        // An error comes again with the next launch.
        let kernel = Kernel { base: "step_x_proj_64", float: Some(self.float()), variant: Some(X_PROJ_TILE) };
        let available = device.is_sm_90a(kernel).unwrap_or(false);
        available
            && (1..=STEP_MANY_ROWS).contains(&self.residual.rows)
            && self.channels().is_multiple_of(STEP_MANY_CHANNELS)
            && self.hidden.view().is_aligned(16)
            && self.state.is_aligned(16)
    }

    fn float(&self) -> Float {
        self.in_proj.values.float()
    }

    fn channels(&self) -> usize {
        self.dt_proj.outputs
    }

    fn d_model(&self) -> usize {
        self.in_proj.inputs
    }

    /// dt, B and C of a row.
    fn width(&self) -> usize {
        self.x_proj.outputs
    }
}

/// `residual ← residual + mixer(norm(residual))`, and the slots' states go on by a token. Row `i` is sequence `i` of the
/// batch, which has one token each.
///
/// # Errors
/// [`crate::Error::OutOfMemory`] while the device's workspace grows; [`crate::Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, shapes and types do not fit one another, or [`BlockStep::is_supported`] does
/// not hold.
pub fn run(device: &Device, batch: &Batch, op: BlockStep) -> Result<()> {
    assert!(op.is_supported(device) && batch.is_step(), "a step of shapes that are not supported");
    let for_many = op.is_for_many(device);
    let for_few = op.is_for_few(device) && (op.residual.rows <= FEW || !for_many);
    device.set_squares(for_few);
    if for_few {
        few(device, batch, &op)
    } else if for_many {
        many(device, batch, op)
    } else {
        beside_cublas(device, batch, op)
    }
}

/// Four kernels that each read their weights once and keep all rows.
fn few(device: &Device, batch: &Batch, op: &BlockStep) -> Result<()> {
    let (rows, float, channels, d_model) = (batch.sequences(), op.float(), op.channels(), op.d_model());
    let tiles = rows.div_ceil(8);
    let workspace = device.workspace(MAX_ROWS * (d_model / 16 + op.width()))?;
    let (sums, dt_b_c) = (workspace, workspace + (4 * MAX_ROWS * d_model / 16) as u64);
    let residual = dense(&op.residual, rows, d_model, Float::F32);
    let launch = |base, blocks, shared, params: &dyn Launch| {
        let kernel = Kernel { base, float: Some(float), variant: Some(tiles) };
        params.launch(device, kernel, Grid::new([blocks, 1, 1], THREADS).shared(shared).behind(true))
    };

    let params = StepInProj {
        weight: matrix(op.in_proj, 2 * channels, d_model, float),
        residual,
        norm: op.norm.f32s(d_model, "the norm's weight"),
        sums: if op.follows { sums } else { 0 },
        to: convolution(op, batch),
        rows: rows as i32,
        d_model: d_model as i32,
        channels: channels as i32,
        d_conv: op.d_conv as i32,
        eps: op.eps,
        reserved: 0,
    };
    let blocks = params::step_blocks(2 * channels, device.multiprocessors());
    let shared = params::step_norm_shared(tiles, d_model, 2 * channels, blocks);
    launch("step_in_proj", blocks, shared, &params)?;

    x_proj(device, batch, op, dt_b_c)?;
    scan(device, batch, op, dt_b_c)?;

    let params = StepOutProj {
        weight: matrix(op.out_proj, d_model, channels, float),
        y: dense(&op.y, rows, channels, float),
        residual,
        sums,
        rows: rows as i32,
        inputs: channels as i32,
        outputs: d_model as i32,
        reserved: 0,
    };
    let shared = params::step_ring(STEP_DEEP, params::step_chunks(channels));
    launch("step_out_proj", d_model.div_ceil(16), shared, &params)
}

/// The norm, and four kernels that each read their weights once and keep all rows, by wgmma.
fn many(device: &Device, batch: &Batch, mut op: BlockStep) -> Result<()> {
    normalize(device, &mut op)?;
    let (rows, float, channels, d_model) = (batch.sequences(), op.float(), op.channels(), op.d_model());
    let dt_b_c = device.workspace(rows * op.width())?;

    // The most rows that the kernels take; for each 64 four warps multiply, and one more fetches.
    let room = params::step_many_room(rows);
    let [in_proj, x_proj, out_proj] = match room {
        64 => ["step_in_proj_64", "step_x_proj_64", "step_out_proj_64"],
        _ => ["step_in_proj_128", "step_x_proj_128", "step_out_proj_128"],
    };
    let kernel = |base, tile| Kernel { base, float: Some(float), variant: Some(tile) };
    let grid = |outputs: usize, tile, splits| {
        let shared = params::step_many_shared(room, tile, usize::from(splits > 1));
        let grid = Grid::new([splits * outputs.div_ceil(tile), 1, 1], 2 * room as u32 + 32);
        grid.shared(shared).cluster(splits).behind(true)
    };
    let boxes = |matrix: &RowsMut, cols| {
        matrix.pointer(rows, cols, float);
        TensorMap::boxes(&matrix.view(), params::step_many_box(rows))
    };

    let tile = params::step_many_tile(2 * channels, 1, device.multiprocessors());
    let params = StepInProjMany {
        // Of a block's tile one half is of x, one of z.
        weight: TensorMap::boxes(&whole(op.in_proj, 2 * channels, d_model, float), tile / 2)?,
        hidden: boxes(&op.hidden, d_model)?,
        to: convolution(&op, batch),
        rows: rows as i32,
        d_model: d_model as i32,
        channels: channels as i32,
        d_conv: op.d_conv as i32,
    };
    device.launch(kernel(in_proj, tile), grid(2 * channels, tile, 1), &params)?;

    let product = |base, weight: &Weight, activations: &RowsMut, out, tile, splits| {
        let outputs = weight.outputs;
        let params = StepProductMany {
            weight: TensorMap::boxes(&whole(weight, outputs, channels, float), tile)?,
            activations: boxes(activations, channels)?,
            out,
            rows: rows as i32,
            inputs: channels as i32,
            outputs: outputs as i32,
            reserved: 0,
        };
        device.launch(kernel(base, tile), grid(outputs, tile, splits), &params)
    };
    product(x_proj, op.x_proj, &op.u, dt_b_c, X_PROJ_TILE, STEP_SPLITS)?;
    scan(device, batch, &op, dt_b_c)?;
    let residual = dense(&op.residual, rows, d_model, Float::F32);
    let tile = params::step_many_tile(d_model, STEP_MANY_SPLITS, device.multiprocessors());
    product(out_proj, op.out_proj, &op.y, residual, tile, STEP_MANY_SPLITS)
}

/// `hidden ← norm(residual)`.
fn normalize(device: &Device, op: &mut BlockStep) -> Result<()> {
    let normed = norm::Forward {
        layer: false,
        eps: op.eps,
        weight: op.norm,
        bias: None,
        delta: None,
        residual: op.residual.reborrow(),
        out: op.hidden.reborrow(),
    };
    norm::forward(device, normed)
}

/// The large products by cuBLAS; what lies between them in as few kernels as can be.
fn beside_cublas(device: &Device, batch: &Batch, mut op: BlockStep) -> Result<()> {
    normalize(device, &mut op)?;
    let in_proj = linear::Product {
        x: op.hidden.view(),
        weight: op.in_proj,
        bias: None,
        out: op.xz.reborrow(),
        add: false,
        fixed_rows: false,
    };
    linear::product(device, in_proj)?;
    let conv = causal_conv1d::Forward {
        x: Rows { cols: op.channels(), ..op.xz.view() },
        weight: op.conv_weight,
        bias: op.conv_bias,
        d_conv: op.d_conv,
        state: Some(op.state.reborrow()),
        out: op.u.reborrow(),
    };
    decode_step::conv_step(device, batch, conv)?;
    let dt_b_c = device.workspace(batch.sequences() * op.width())?;
    x_proj(device, batch, &op, dt_b_c)?;
    scan(device, batch, &op, dt_b_c)?;
    let out_proj = linear::Product {
        x: op.y.view(),
        weight: op.out_proj,
        bias: None,
        out: op.residual,
        add: true,
        fixed_rows: false,
    };
    linear::product(device, out_proj)
}

/// dt, B and C of u's rows, however many, to [R, W] f32 at `dt_b_c`.
fn x_proj(device: &Device, batch: &Batch, op: &BlockStep, dt_b_c: u64) -> Result<()> {
    let (rows, float, channels, width) = (batch.sequences(), op.float(), op.channels(), op.width());
    let tiles = rows.min(MAX_ROWS).div_ceil(8);
    let params = StepXProj {
        weight: matrix(op.x_proj, width, channels, float),
        u: dense(&op.u, rows, channels, float),
        dt_b_c,
        rows: rows as i32,
        inputs: channels as i32,
        outputs: width as i32,
        reserved: 0,
    };
    let kernel = Kernel { base: "step_x_proj", float: Some(float), variant: Some(tiles) };
    let grid = Grid::new([width.div_ceil(16), STEP_SPLITS, rows.div_ceil(8 * tiles)], THREADS);
    device.launch(kernel, grid.shared(8192 * STEP_SHORT).behind(true), &params)
}

/// From those, u and z to y, for any number of rows.
fn scan(device: &Device, batch: &Batch, op: &BlockStep, dt_b_c: u64) -> Result<()> {
    let (rows, float, channels, dt_rank) = (batch.sequences(), op.float(), op.channels(), op.dt_proj.inputs);
    let params = StepScan {
        weight: matrix(op.dt_proj, channels, dt_rank, float),
        dt_b_c,
        u: dense(&op.u, rows, channels, float),
        z: z(op, rows),
        y: dense(&op.y, rows, channels, float),
        a: op.a.f32s(STEP_STATES * channels, "A"),
        d: op.d.f32s(channels, "D"),
        delta_bias: op.delta_bias.f32s(channels, "the bias of delta"),
        ssm_state: states(op, batch) + (4 * (op.d_conv - 1) * channels) as u64,
        slots: batch.slots(),
        fresh: batch.fresh(),
        slot_stride: op.state.slot_stride as i64,
        z_stride: op.xz.stride as i64,
        rows: rows as i32,
        channels: channels as i32,
        dt_rank: dt_rank as i32,
        reserved: 0,
    };
    let many = rows > FEW && channels.is_multiple_of(STEP_MANY_CHANNELS) && op.state.is_aligned(8);
    let (kernel, grid) = if many {
        let blocks = params::step_scan_many_rows(channels, rows, device.multiprocessors());
        let grid = Grid::new([channels / STEP_MANY_CHANNELS, blocks, 1], THREADS);
        ("step_scan_many", grid.shared(params::step_scan_many_shared(dt_rank)))
    } else {
        ("step_scan", Grid::new([channels / STEP_CHANNELS, rows.div_ceil(8), 1], THREADS))
    };
    device.launch(Kernel::of(kernel, float), grid.behind(true), &params)
}

/// What in_proj's outputs become.
fn convolution(op: &BlockStep, batch: &Batch) -> StepConvolution {
    let (rows, channels) = (batch.sequences(), op.channels());
    StepConvolution {
        u: dense(&op.u, rows, channels, op.float()),
        z: z(op, rows),
        conv_weight: op.conv_weight.f32s(op.d_conv * channels, "the convolution's weight"),
        conv_bias: op.conv_bias.map_or(0, |bias| bias.f32s(channels, "the convolution's bias")),
        conv_state: states(op, batch),
        slots: batch.slots(),
        fresh: batch.fresh(),
        slot_stride: op.state.slot_stride as i64,
        z_stride: op.xz.stride as i64,
    }
}

/// Where z begins: behind x.
fn z(op: &BlockStep, rows: usize) -> u64 {
    op.xz.pointer(rows, 2 * op.channels(), op.float()) + (op.channels() * op.float().bytes()) as u64
}

/// Where slot 0's conv_state begins, and right behind it its ssm_state.
fn states(op: &BlockStep, batch: &Batch) -> u64 {
    op.state.pointer((op.d_conv - 1 + STEP_STATES) * op.channels(), batch.last_slot)
}

/// The arguments of [`head`].
pub struct Head<'a> {
    /// [R, d_model] f32, without gaps.
    pub residual: Rows<'a>,
    /// [d_model] f32: RMSNorm's weight.
    pub norm: &'a Buffer,
    /// Added under the root.
    pub eps: f32,
    /// [vocab, d_model].
    pub weight: &'a Weight,
    /// [R, vocab] f32, without gaps.
    pub logits: RowsMut<'a>,
}

impl Head<'_> {
    /// Whether the kernel runs on this card and takes these shapes and types; [`head`] expects it.
    #[must_use]
    pub fn is_supported(&self, device: &Device) -> bool {
        takes(device, self.weight)
            && fits(device, self.residual.rows, self.weight)
            && self.residual.is_aligned(16)
    }
}

/// Whether the kernels run on this card, and take a weight of this type and width.
fn takes(device: &Device, weight: &Weight) -> bool {
    let hopper = device.is_hopper(Kernel::of("step_scan", Float::F16));
    // An error comes again with the next launch.
    hopper.unwrap_or(false) && weight.values.float() != Float::F32 && weight.inputs.is_multiple_of(16)
}

/// Whether the kernels that normalize `rows` rows first have room for them beside a weight's ring.
fn fits(device: &Device, rows: usize, weight: &Weight) -> bool {
    let blocks = params::step_blocks(weight.outputs, device.multiprocessors());
    let shared = params::step_norm_shared(rows.div_ceil(8), weight.inputs, weight.outputs, blocks);
    (1..=MAX_ROWS).contains(&rows) && shared + STATIC_SHARED <= device.shared_memory()
}

/// `logits = norm(residual) · weightᵀ`, right behind the last layer's [`run`] on the same rows.
///
/// # Errors
/// [`crate::Error::Lost`].
///
/// # Panics
/// As [`run`].
pub fn head(device: &Device, op: Head) -> Result<()> {
    assert!(op.is_supported(device), "a head of shapes that are not supported");
    let Head { residual, norm, eps, weight, logits } = op;
    let (rows, d_model, vocab, float) = (logits.rows, weight.inputs, weight.outputs, weight.values.float());
    assert!(residual.stride == d_model, "rows with gaps");
    let params = StepHead {
        weight: matrix(weight, vocab, d_model, float),
        residual: residual.pointer(rows, d_model, Float::F32),
        norm: norm.f32s(d_model, "the norm's weight"),
        sums: if device.has_squares() { device.workspace(1)? } else { 0 },
        logits: dense(&logits, rows, vocab, Float::F32),
        rows: rows as i32,
        d_model: d_model as i32,
        vocab: vocab as i32,
        eps,
    };
    let kernel = Kernel { base: "step_head", float: Some(float), variant: Some(rows.div_ceil(8)) };
    let blocks = params::step_blocks(vocab, device.multiprocessors());
    let shared = params::step_norm_shared(rows.div_ceil(8), d_model, vocab, blocks);
    device.launch(kernel, Grid::new([blocks, 1, 1], THREADS).shared(shared).behind(true), &params)
}

/// Launches of different parameters by one closure.
trait Launch {
    fn launch(&self, device: &Device, kernel: Kernel, grid: Grid) -> Result<()>;
}

impl<P: Copy> Launch for P {
    fn launch(&self, device: &Device, kernel: Kernel, grid: Grid) -> Result<()> {
        device.launch(kernel, grid, self)
    }
}

fn matrix(weight: &Weight, outputs: usize, inputs: usize, float: Float) -> u64 {
    whole(weight, outputs, inputs, float).pointer(outputs, inputs, float)
}

fn whole(weight: &Weight, outputs: usize, inputs: usize, float: Float) -> Rows<'_> {
    assert!(
        weight.outputs == outputs && weight.inputs == inputs && weight.values.float() == float,
        "{weight:?}, expected [{outputs}, {inputs}] of {float:?}"
    );
    Rows { buffer: &weight.values, offset: 0, rows: outputs, cols: inputs, stride: inputs }
}

fn dense(matrix: &RowsMut, rows: usize, cols: usize, float: Float) -> u64 {
    assert!(matrix.stride == cols, "rows with gaps: {matrix:?}");
    matrix.pointer(rows, cols, float)
}
