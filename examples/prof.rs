#[path="../benches/support/mod.rs"] mod support;
use viahop::dataplane::{room::Room,route::Arrival,limits::*};
fn main(){ let n:usize=std::env::args().nth(1).unwrap().parse().unwrap(); let tables=support::tables(); let mut d=support::dispatcher(); let mut input=vec![0;DATAGRAM_MAX]; let mut head=vec![0;HEAD_MAX];
 let a=Arrival{from:support::address(support::CLIENT),listener:Some(0),local:None}; let calls:Vec<_>=(0..512).map(support::invite).collect();
 let t=std::time::Instant::now();
 for i in 0..n{ let c=&calls[i&511]; input[..c.len()].copy_from_slice(c); let mut r=Room::new(&mut input[..c.len()],&mut head); std::hint::black_box(d.on_datagram(&tables,0,a,&mut r)); }
 println!("{:.1} ns",t.elapsed().as_nanos() as f64/n as f64); }
