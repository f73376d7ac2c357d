async fn send(gate: &deltaplane_engine::OrderGate, intent: deltaplane_ports::IntentRecord) {
    gate.send(intent).await;
}

fn main() {}
