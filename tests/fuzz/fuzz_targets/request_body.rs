//! Any body is read or refused; nothing panics.
#![no_main]

use deltaplane_api::request::{Fields, Range};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(mut fields) = Fields::read(body) {
        fields.need_decimal("targetDelta", Range::ANY);
        fields.need_accounts("accounts");
        fields.need_symbol("symbol");
        fields.flag("dryRun");
        fields.millis("timeout", 100, 600_000);
        let _ = fields.finish();
    }
});
