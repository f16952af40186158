//! What a keeper keeps survives its file.

use super::*;

#[test]
fn the_file_reads_back() {
    let kept = Kept {
        record: record(4, 5, Phase::Serving, "a"),
        term: Term(5),
        boot: BootId("boot".to_owned()),
        held: Some(Epoch(4)),
        incomplete: None,
    };
    let text = serde_json::to_string(&kept).unwrap();
    assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
}
