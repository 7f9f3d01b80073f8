//! `qailc devices`: what can run artifacts here.

use qail_runtime::{AdapterInfo, DeviceSpec, Isa};

use super::{Failure, Terminal};

/// Something that can run artifacts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name for `--device`.
    pub device: String,
    /// What it is.
    pub name: String,
    /// Its driver, empty for processors.
    pub driver: String,
    /// `cpu`, or what the driver says about an adapter.
    pub kind: &'static str,
}

/// Everything that can run artifacts here: instruction sets of the processor,
/// fastest first, then adapters.
pub fn devices() -> Vec<Device> {
    let cpu = Isa::ALL.into_iter().rev().filter(|isa| isa.is_present()).map(|isa| Device {
        device: DeviceSpec::Cpu(Some(isa)).to_string(),
        name: if isa == Isa::best() { "processor, the default".to_owned() } else { "processor".to_owned() },
        driver: String::new(),
        kind: "cpu",
    });
    let gpu = qail_runtime::adapters().into_iter().map(|adapter: AdapterInfo| Device {
        device: adapter.device.to_string(),
        name: adapter.name,
        driver: adapter.driver,
        kind: adapter.kind,
    });
    cpu.chain(gpu).collect()
}

/// Runs the subcommand.
pub(super) fn main(terminal: &Terminal) -> Result<(), Failure> {
    let rows = devices();
    terminal.result(
        || {
            let mut table = comfy_table::Table::new();
            table.load_style(comfy_table::presets::NOTHING);
            table.set_header(["device", "kind", "name", "driver"]);
            for row in &rows {
                table.add_row([&row.device, row.kind, &row.name, &row.driver]);
            }
            format!("{table}\n")
        },
        || {
            let devices: Vec<serde_json::Value> = rows
                .iter()
                .map(|row| serde_json::json!({ "device": row.device, "kind": row.kind, "name": row.name, "driver": row.driver }))
                .collect();
            serde_json::json!({ "schema": 1, "devices": devices })
        },
    );
    Ok(())
}
