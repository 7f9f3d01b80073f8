//! `qailc devices`: what can run artifacts here.

use qail_runtime::{AdapterInfo, DeviceSpec, Isa};

use super::{Failure, Terminal};

/// One row: name for `--device`, what it is, its driver, its kind.
struct Row {
    device: String,
    name: String,
    driver: String,
    kind: &'static str,
}

/// Runs the subcommand.
pub(super) fn main(terminal: &Terminal) -> Result<(), Failure> {
    let cpu = Isa::ALL.into_iter().rev().filter(|isa| isa.is_present()).map(|isa| Row {
        device: DeviceSpec::Cpu(Some(isa)).to_string(),
        name: if isa == Isa::best() { "processor, the default".to_owned() } else { "processor".to_owned() },
        driver: String::new(),
        kind: "cpu",
    });
    let gpu = qail_runtime::adapters().into_iter().map(|adapter: AdapterInfo| Row {
        device: adapter.device.to_string(),
        name: adapter.name,
        driver: adapter.driver,
        kind: adapter.kind,
    });
    let rows: Vec<Row> = cpu.chain(gpu).collect();
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
