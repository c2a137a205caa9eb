//! The resident supervisor of one container. Started by Berth, not by hand.

fn main() {
    youki_backend::supervisor::resident_main()
}
