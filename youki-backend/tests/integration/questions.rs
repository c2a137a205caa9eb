//! What `berth` asks before it removes: nothing goes without a yes, wherever the answer comes from.

use crate::support::Case;
use crate::support::berth::{berth, said};

crate::tests![a_prune_takes_its_answer_from_whatever_stands_on_standard_input];

async fn a_prune_takes_its_answer_from_whatever_stands_on_standard_input(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await;
    berth(&root, &["pull", "-q", image]).await.succeeded();
    berth(&root, &["network", "create", "asked"]).await.succeeded();
    let there = async || {
        let (images, networks) = (&["images", "-q"][..], &["network", "ls", "-q"][..]);
        let networks = berth(&root, networks).await.succeeded();
        (berth(&root, images).await.succeeded().lines().count(), networks.lines().any(|name| name == "asked"))
    };
    assert_eq!(there().await, (1, true));
    let prunes = [&["prune"][..], &["network", "prune"], &["volume", "prune"]];
    // As from cron; `said` gives it /dev/null.
    for words in prunes {
        let mut command = crate::support::berth::command(&root);
        command.args(words);
        let answered = said(command).await;
        assert!(answered.code == 0 && answered.stderr.contains("nothing was removed"), "{words:?}: {answered:?}");
        for no in ["n\n", "\n", "nonsense\n", ""] {
            let answered = case.berth_on_with(&root, words, no.as_bytes()).await;
            assert!(answered.code == 0 && answered.stderr.contains("nothing was removed"), "{words:?}: {answered:?}");
        }
    }
    for words in prunes {
        let answered = case.berth_on_with(&root, &[words, &["--json"]].concat(), b"n\n").await;
        assert_eq!(answered.json()["deleted"], serde_json::json!([]), "{words:?}");
    }
    assert_eq!(there().await, (1, true), "something went");
    for words in prunes {
        let answered = case.berth_on_with(&root, words, b"y\n").await;
        assert!(answered.code == 0 && !answered.stderr.contains("nothing was removed"), "{words:?}: {answered:?}");
    }
    assert_eq!(there().await, (0, false));
}
