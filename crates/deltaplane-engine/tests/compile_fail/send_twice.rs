use deltaplane_engine::{Durable, OrderGate};
use deltaplane_ports::IntentRecord;

async fn send(gate: &OrderGate, intent: Durable<IntentRecord>) {
    gate.send(intent).await;
    gate.send(intent).await;
}

fn main() {}
