//! Artifacts: as they are, and with their checksums put right, so that lies get
//! past them. What is accepted and small is loaded and runs on the CPU.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use qail_artifact::{Artifact, Manifest, Storage};
use qail_runtime::{DeviceSpec, LoadOptions, Session, TensorView, TensorViewMut};
use sha2::{Digest, Sha256};

/// Largest scratch memory of a file that is loaded.
const MAX_SCRATCH_BYTES: u64 = 64 << 20;
/// Most items of an unrolled entry point that is run.
const MAX_TURNS: u64 = 1000;

fuzz_target!(|bytes: &[u8]| {
    try_file(bytes);
    if let Some(repaired) = repair(bytes) {
        try_file(&repaired);
    }
});

fn try_file(bytes: &[u8]) {
    let Ok(artifact) = Artifact::parse(bytes) else { return };
    let manifest = artifact.manifest();
    let scratch: u64 = manifest.arenas.iter().map(|arena| arena.size).sum();
    if scratch > MAX_SCRATCH_BYTES {
        return;
    }
    for entry in &manifest.entries {
        let turns: u64 = entry.steps.iter().map(turns).fold(0, u64::saturating_add);
        let options = LoadOptions { entry: Some(entry.name.clone()), ..LoadOptions::default() };
        let Ok(mut session) = Session::load_with(bytes, DeviceSpec::Cpu(None), &options) else { continue };
        if turns <= MAX_TURNS {
            run(&mut session);
        }
    }
}

/// Steps that a step stands for.
fn turns(step: &qail_artifact::schema::Step) -> u64 {
    match &step.op {
        Some(qail_artifact::schema::step::Op::Repeat(repeat)) => {
            let body: u64 = repeat.steps.iter().map(turns).fold(0, u64::saturating_add);
            body.saturating_mul(u64::from(repeat.n))
        }
        _ => 1,
    }
}

/// Numbers of an input or output.
enum Numbers {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    I64(Vec<i64>),
}

fn ones(port: &qail_runtime::PortInfo) -> Option<Numbers> {
    let n = port.elements();
    Some(match port.storage {
        Storage::F32 => Numbers::F32(vec![1.0; n]),
        Storage::I32 => Numbers::I32(vec![1; n]),
        Storage::U8 => Numbers::U8(vec![1; n]),
        Storage::I8 => Numbers::I8(vec![1; n]),
        Storage::I64 => Numbers::I64(vec![1; n]),
        Storage::Unspecified | Storage::I16 => return None,
    })
}

fn run(session: &mut Session) {
    let numbers = |ports: &[qail_runtime::PortInfo]| ports.iter().map(ones).collect::<Option<Vec<_>>>();
    let (Some(inputs), Some(mut outputs)) = (numbers(session.inputs()), numbers(session.outputs())) else { return };
    let inputs: Option<Vec<TensorView<'_>>> = inputs
        .iter()
        .map(|numbers| match numbers {
            Numbers::F32(x) => Some(TensorView::F32(x)),
            Numbers::I32(x) => Some(TensorView::I32(x)),
            Numbers::U8(x) => Some(TensorView::U8(x)),
            Numbers::I64(x) => Some(TensorView::I64(x)),
            Numbers::I8(_) => None,
        })
        .collect();
    let mut outputs: Vec<TensorViewMut<'_>> = outputs
        .iter_mut()
        .map(|numbers| match numbers {
            Numbers::F32(x) => TensorViewMut::F32(x),
            Numbers::I32(x) => TensorViewMut::I32(x),
            Numbers::U8(x) => TensorViewMut::U8(x),
            Numbers::I8(x) => TensorViewMut::I8(x),
            Numbers::I64(x) => TensorViewMut::I64(x),
        })
        .collect();
    if let Some(inputs) = inputs {
        let _ = session.run(&inputs, &mut outputs);
    }
}

/// The file with the checksums, lengths and section offsets that its contents
/// ask for.
fn repair(bytes: &[u8]) -> Option<Vec<u8>> {
    let offset = usize::try_from(u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?)).ok()?;
    let mut manifest = Manifest::decode(bytes.get(offset..)?).ok()?;
    for section in &mut manifest.sections {
        let start = usize::try_from(section.offset).ok()?;
        let end = start.checked_add(usize::try_from(section.len).ok()?)?;
        section.sha256 = Sha256::digest(bytes.get(start..end.min(offset))?).to_vec();
    }
    let encoded = manifest.encode_to_vec();
    let mut out = bytes[..offset].to_vec();
    if out.len() < 64 {
        return None;
    }
    out.extend_from_slice(&encoded);
    let len = out.len() as u64;
    out[..8].copy_from_slice(&qail_artifact::MAGIC);
    out[8..12].copy_from_slice(&qail_artifact::FORMAT_VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&u32::try_from(encoded.len()).ok()?.to_le_bytes());
    out[24..32].copy_from_slice(&len.to_le_bytes());
    out[32..64].copy_from_slice(&Sha256::digest(&encoded));
    Some(out)
}
