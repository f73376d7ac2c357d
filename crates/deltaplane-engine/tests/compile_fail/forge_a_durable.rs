fn forge(intent: deltaplane_ports::IntentRecord) -> deltaplane_engine::Durable<deltaplane_ports::IntentRecord> {
    deltaplane_engine::Durable(intent)
}

fn main() {}
