//! Each machine alone, in every order of events.

mod destination;
mod guest;
mod source;
#[path = "../world/world.rs"]
mod world;
