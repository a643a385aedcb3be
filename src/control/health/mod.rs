//! Whether backends are alive: [`detector`] decides, in pure code; [`probe`] asks, over the network.

pub mod detector;
pub mod outlier;
pub mod probe;
