//! What must not compile: sending what is not durable, and sending from a dry run.

#[test]
fn nothing_undurable_can_be_sent_and_a_dry_run_cannot_send() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
