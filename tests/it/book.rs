//! What the code knows is written into the book by these tests, and compared with it: codes, alert topics.
//! `DELTAPLANE_WRITE_DOCS=1` writes instead of comparing.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use deltaplane_math::{MarginUse, liquidation_distance, reference_exposure};
use deltaplane_testkit::{delta, notional, price, ratio};
use deltaplane_types::{AlertTopic, Code, Delta, MarginBracket, Notional};

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(book().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compares what stands between two marks of a page, or writes it.
pub(crate) fn compare(path: &Path, (begin, end): (&str, &str), stated: &str) {
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(begin).expect("the beginning of what is written");
    let (documented, after) = rest.split_once(end).expect("the end of what is written");
    if std::env::var_os("DELTAPLANE_WRITE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{begin}{stated}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(documented, stated, "run the test with DELTAPLANE_WRITE_DOCS=1 and commit what it writes");
}

#[test]
fn the_page_of_codes_is_that_of_the_code() {
    let mut text = "\n| code | what it says | what to do |\n|---|---|---|\n".to_owned();
    for code in Code::ALL {
        let [texts, _] = deltaplane_api::texts::of_code(code);
        writeln!(text, "| {} | {} | {} |", code.number(), texts.meaning, texts.remedy).unwrap();
    }
    text.push('\n');
    let marks = ("<!-- codes: written by tests/it/book.rs -->\n", "<!-- end of codes -->\n");
    compare(&book().join("reference/codes.md"), marks, &text);
}

#[test]
fn every_alert_topic_has_a_section() {
    let mut text = "\n| topic | condition |\n|---|---|\n".to_owned();
    for topic in AlertTopic::ALL {
        writeln!(text, "| [`{topic}`](#{topic}) | {} |", topic.meaning()).unwrap();
    }
    text.push('\n');
    let marks = ("<!-- topics: written by tests/it/book.rs -->\n", "<!-- end of topics -->\n");
    compare(&book().join("incidents/alerts.md"), marks, &text);
    for (language, path) in [("en", "incidents/alerts.md"), ("zh", "../zh/src/incidents/alerts.md")] {
        let page = page(path);
        let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let topics: Vec<&str> = AlertTopic::ALL.iter().map(|topic| topic.as_str()).collect();
        assert_eq!(sections, topics, "{language}: one section for each topic, in their order");
    }
}

/// The routes of the page are those of the router.
#[test]
fn every_endpoint_is_on_the_page_of_the_api() {
    let router = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/deltaplane-api/src/router.rs");
    let router = std::fs::read_to_string(router).unwrap();
    let page = page("reference/api.md").replace("{accountId}", "{id}");
    let paths: Vec<&str> = router.split('"').filter(|text| text.starts_with("/api/v1/")).collect();
    assert!(paths.len() > 25, "{paths:?}");
    for path in paths {
        assert!(page.contains(path), "docs/src/reference/api.md does not have {path}");
    }
}

/// Numbers of the pages of concepts, from the functions that the product computes them with.
#[test]
fn numbers_of_the_concepts_are_computed() {
    let exposure = deltaplane_math::exposure_of([delta("0.5"), delta("-0.25")]).unwrap();
    let reference = reference_exposure(&exposure, Delta::ZERO, notional("100"), price("66000")).unwrap();
    let net = exposure.net;
    let deviation = deltaplane_math::deviation_ratio(net, Delta::ZERO, reference).unwrap();
    assert_eq!((net, deviation), (delta("0.25"), ratio("0.5")));
    let page_of_delta = page("concepts/delta.md");
    assert!(page_of_delta.contains("| **net delta** | | **+0.25** |"));
    assert!(page_of_delta.contains("0.25 / 0.5 = 0.5"));

    let margin = MarginUse {
        equity: notional("10000"),
        other_margin: Notional::ZERO,
        other_maintenance: Notional::ZERO,
        initial_rate: ratio("0.1"),
        brackets: vec![MarginBracket {
            floor: Notional::ZERO,
            cap: notional("1000000"),
            maintenance_rate: ratio("0.004"),
            deduction: Notional::ZERO,
            max_leverage: 100.into(),
        }],
        not_shared: Notional::ZERO,
        others: Vec::new(),
        sides: None,
    };
    let used = deltaplane_math::utilization(&margin, delta("-1"), price("66000")).unwrap();
    assert_eq!(used, ratio("0.66"));
    let later = MarginUse { equity: notional("6700"), ..margin.clone() };
    let used = deltaplane_math::utilization(&later, delta("-1"), price("69300")).unwrap();
    assert_eq!(used.value().round_dp(2), ratio("1.03").value());
    let distance = liquidation_distance(&margin, delta("-1"), price("66000")).unwrap().unwrap();
    assert_eq!(distance.value().round_dp(3), ratio("0.147").value());
    let page_of_margin = page("concepts/margin.md");
    for number in ["**0.66**", "**1.03**", "**0.147**"] {
        assert!(page_of_margin.contains(number), "{number}");
    }
}
