//! The stage of a supervisor's life that is linked with libcontainer. Started by Berth, not by hand.

fn main() {
    youki_backend::supervisor::create_main()
}
