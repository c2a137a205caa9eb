//! When the next attempt begins, if there is to be one: docker's rules.

use std::time::Duration;

use runtime_core::spec::{RestartKind, RestartPolicy};

/// The first pause, unless the policy names one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Pauses are doubled up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who ran so long is no longer failing over and over: its pauses begin anew.
const STEADY: Duration = Duration::from_secs(10);

/// A restart policy, and how far it has got.
#[derive(Debug)]
pub(super) struct Schedule {
    policy: RestartPolicy,
    /// Restarts since the last start by hand.
    restarts: u32,
    last_pause: Option<Duration>,
}

impl Schedule {
    pub fn new(policy: &RestartPolicy) -> Self {
        Self { policy: policy.clone(), restarts: 0, last_pause: None }
    }

    /// Another policy from now on. What was counted counts.
    pub fn set_policy(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    /// Whether another attempt is to follow one that ended by itself with `exit_code`.
    pub fn wants_another(&self, exit_code: i32) -> bool {
        let wanted = match self.policy.kind {
            RestartKind::No => false,
            RestartKind::Always | RestartKind::UnlessStopped => true,
            RestartKind::OnFailure => exit_code != 0,
        };
        wanted && self.policy.max_attempts.is_none_or(|max| self.restarts < max)
    }

    /// The pause before the next attempt, after one that ended by itself with `exit_code` and `ran` so long.
    pub fn after(&mut self, exit_code: i32, ran: Duration) -> Option<Duration> {
        if !self.wants_another(exit_code) {
            return None;
        }
        let first = self.policy.delay.unwrap_or(FIRST_PAUSE);
        let pause = match self.last_pause {
            Some(last) if ran < STEADY => last.saturating_mul(2).min(first.max(LONGEST_PAUSE)),
            _ => first,
        };
        self.last_pause = Some(pause);
        Some(pause)
    }

    /// Which restart the next one is.
    pub fn next(&self) -> u32 {
        self.restarts.saturating_add(1)
    }

    /// Counts the restart that begins.
    pub fn begin(&mut self) {
        self.restarts = self.next();
    }

    /// After a start by hand, which is no restart.
    pub fn begin_anew(&mut self) {
        self.restarts = 0;
        self.last_pause = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: RestartKind, max_attempts: Option<u32>, delay: Option<Duration>) -> Schedule {
        Schedule::new(&RestartPolicy { kind, max_attempts, delay })
    }

    const SHORT: Duration = Duration::from_secs(1);

    #[test]
    fn what_ends_is_restarted_as_its_policy_says() {
        for (kind, after_success, after_failure) in [
            (RestartKind::No, false, false),
            (RestartKind::Always, true, true),
            (RestartKind::UnlessStopped, true, true),
            (RestartKind::OnFailure, false, true),
        ] {
            let mut one = schedule(kind, None, None);
            assert_eq!(one.after(0, SHORT).is_some(), after_success, "{kind:?}");
            for code in [1, 126, 127, 137, 255] {
                assert_eq!(one.after(code, SHORT).is_some(), after_failure, "{kind:?} {code}");
            }
        }
    }

    #[test]
    fn pauses_are_doubled_up_to_a_minute_and_begin_anew_after_ten_seconds() {
        let mut one = schedule(RestartKind::Always, None, None);
        let pauses: Vec<u128> = (0..12).map(|_| one.after(1, SHORT).unwrap().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(one.after(1, STEADY), Some(FIRST_PAUSE));
        one.after(1, SHORT).unwrap();
        one.begin_anew();
        assert_eq!(one.after(1, SHORT), Some(FIRST_PAUSE));
    }

    #[test]
    fn a_delay_takes_the_place_of_the_first_pause() {
        let mut one = schedule(RestartKind::Always, None, Some(Duration::from_secs(20)));
        let pauses: Vec<u64> = (0..4).map(|_| one.after(1, SHORT).unwrap().as_secs()).collect();
        assert_eq!(pauses, [20, 40, 60, 60]);
        let mut one = schedule(RestartKind::Always, None, Some(Duration::from_secs(90)));
        assert_eq!([one.after(1, SHORT), one.after(1, SHORT)], [Some(Duration::from_secs(90)); 2]);
    }

    #[test]
    fn another_policy_goes_on_with_what_was_counted() {
        let mut one = schedule(RestartKind::No, None, None);
        assert_eq!(one.after(1, SHORT), None);
        one.set_policy(RestartPolicy { kind: RestartKind::Always, ..RestartPolicy::default() });
        assert_eq!(one.after(0, SHORT), Some(FIRST_PAUSE));
        one.begin();
        one.set_policy(RestartPolicy { kind: RestartKind::OnFailure, max_attempts: Some(2), delay: None });
        assert!(one.wants_another(1) && !one.wants_another(0));
        assert_eq!(one.after(1, SHORT), Some(2 * FIRST_PAUSE));
        one.begin();
        assert_eq!(one.after(1, SHORT), None);
    }

    #[test]
    fn after_so_many_restarts_it_is_given_up() {
        let mut one = schedule(RestartKind::OnFailure, Some(2), None);
        for number in 1..=2 {
            assert!(one.after(1, SHORT).is_some());
            assert_eq!(one.next(), number);
            one.begin();
        }
        assert_eq!(one.after(1, SHORT), None);
        one.begin_anew();
        assert!(one.after(1, SHORT).is_some());
    }
}
