//! The inner loop with AMX tiles (Intel Architecture Instruction Set Extensions Programming Reference, chapter 3): 32 rows by
//! 32 columns in four tiles of 16 x 16, 32 values deep at a time. Rust has no stable intrinsics for them, hence assembly.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use super::super::gemm::Target;
use super::{PANEL, Piece, STEP};

/// Whether the processor has AMX for bfloat16 and the system lets us keep tiles.
pub(super) fn allowed() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let features = __cpuid_count(7, 0).edx;
    is_x86_feature_detected!("avx512f") && features & BF16 != 0 && features & TILE != 0 && permitted()
}

/// Asks Linux for the room of the tiles' registers (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`), for all threads.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that touches no memory of ours.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") REQUEST, in("rsi") TILE_DATA, lateout("rcx") _, lateout("r11") _);
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = {
    let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        (shapes.bytes[tile], shapes.rows[tile]) = (64, 16);
        tile += 1;
    }
    shapes
};

/// Works through pieces.
///
/// # Safety
///
/// [`allowed`] said yes; the pieces lie within memory that nobody else writes.
pub(super) unsafe fn run(pieces: impl Iterator<Item = Piece>) {
    // SAFETY: the caller's. Nothing else in this program uses tiles.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack));
        run_by(tiles, pieces);
        asm!("tilerelease", options(nostack));
    }
}

/// 32 columns of some times 16 rows of a piece from a row on, added to the target or written there.
type Tiles = unsafe fn(&Piece, usize, Target, bool, usize);

/// # Safety
///
/// As for [`run`], where `tiles` uses tiles.
unsafe fn run_by(tiles: Tiles, pieces: impl Iterator<Item = Piece>) {
    // What reaches over the edge of the output, or is multiplied by something, is made here first.
    let mut edge = [0.0_f32; 32 * PANEL];
    for piece in pieces {
        for row in (0..piece.rows).step_by(32) {
            let (rows, columns) = ((piece.rows - row).min(32), piece.columns);
            // SAFETY: the caller's.
            unsafe {
                let out = piece.out.row(row);
                if rows == 32 && columns == PANEL && piece.alpha == 1.0 {
                    tiles(&piece, row, out, piece.add, 2);
                    continue;
                }
                let buffer = Target::new(edge.as_mut_ptr(), PANEL);
                tiles(&piece, row, buffer, false, rows.div_ceil(16));
                for i in 0..rows {
                    for j in 0..columns {
                        let (place, value) = (out.row(i).at(j).first(), piece.alpha * edge[i * PANEL + j]);
                        place.write(if piece.add { place.read() + value } else { value });
                    }
                }
            }
        }
    }
}

/// [`Tiles`] by the processor.
///
/// # Safety
///
/// As for [`run`].
unsafe fn tiles(piece: &Piece, row: usize, out: Target, add: bool, high: usize) {
    // SAFETY: the caller's. A row group beyond the last is not loaded.
    unsafe {
        let a = piece.a.add(row / 16 * piece.stride);
        let below = if high == 2 { a.add(piece.stride) } else { a };
        let (c, c_stride) = (out.first(), 4 * out.stride());
        let c_below = out.row(16).first();
        if add {
            asm!(
                "tileloadd tmm0, [{c} + {s}*1]",
                "tileloadd tmm1, [{c} + {s}*1 + 64]",
                "tileloadd tmm2, [{d} + {s}*1]",
                "tileloadd tmm3, [{d} + {s}*1 + 64]",
                c = in(reg) c, d = in(reg) c_below, s = in(reg) c_stride, options(nostack)
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
        }
        // Loads for the next step stand between products of this one, or neither would wait for the other in vain. The last
        // step loads what is behind the operands, and nobody uses it; see `SLACK`.
        asm!(
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {t}*1]",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {t}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{e} + {s}*1]",
            "tileloadd tmm4, [{a} + {s}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm6, [{b} + {t}*1 + 2048]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {e}, 1024",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            a = inout(reg) a => _,
            e = inout(reg) below => _,
            b = inout(reg) piece.b => _,
            n = inout(reg) piece.depth / STEP => _,
            s = in(reg) 2 * STEP,
            t = in(reg) 4 * PANEL,
            options(nostack)
        );
        asm!(
            "tilestored [{c} + {s}*1], tmm0",
            "tilestored [{c} + {s}*1 + 64], tmm1",
            c = in(reg) c, s = in(reg) c_stride, options(nostack)
        );
        if high == 2 {
            asm!(
                "tilestored [{d} + {s}*1], tmm2",
                "tilestored [{d} + {s}*1 + 64], tmm3",
                d = in(reg) c_below, s = in(reg) c_stride, options(nostack)
            );
        }
    }
}

/// [`run`] with what the instructions do in Rust, so that all around them is tested on every processor.
///
/// # Safety
///
/// The pieces lie within memory that nobody else writes.
#[cfg(test)]
pub(super) unsafe fn run_by_hand(pieces: impl Iterator<Item = Piece>) {
    unsafe fn tiles(piece: &Piece, row: usize, out: Target, add: bool, high: usize) {
        let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        for (i, j) in (0..16 * high).flat_map(|i| (0..PANEL).map(move |j| (i, j))) {
            // SAFETY: the caller's; where the processor reads and writes.
            unsafe {
                let (a, place) = (piece.a.add((row + i) / 16 * piece.stride), out.row(i).at(j).first());
                let mut sum = if add { place.read() } else { 0.0 };
                for k in 0..piece.depth {
                    let x = a.add(k / STEP * 16 * STEP + i % 16 * STEP + k % STEP).read();
                    let y = piece.b.add(k / 2 * PANEL + j).cast::<u16>().add(k % 2).read();
                    sum += wide(x) * wide(y);
                }
                place.write(sum);
            }
        }
    }
    // SAFETY: the caller's.
    unsafe { run_by(tiles, pieces) };
}
