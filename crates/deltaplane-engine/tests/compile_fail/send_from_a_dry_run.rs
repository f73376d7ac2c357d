use deltaplane_engine::{DryRun, Durable};
use deltaplane_ports::IntentRecord;

async fn send(dry: &DryRun, intent: Durable<IntentRecord>) {
    dry.send(intent).await;
}

fn main() {}
