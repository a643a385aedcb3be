#[path="../benches/support/mod.rs"] mod support;
use viahop::dataplane::{room::Room,route::Arrival,limits::*};
fn main(){ let n:usize=std::env::args().nth(1).unwrap().parse().unwrap(); let tables=support::tables(); let mut d=support::dispatcher(); let mut head=vec![0;HEAD_MAX];
 let a=Arrival{from:support::address(support::CLIENT),listener:Some(0),local:None}; let mut calls:Vec<_>=(0..32).map(support::invite).collect();
 let mf=String::from_utf8_lossy(&calls[0]).find("Max-Forwards: ").unwrap()+14;
 let t=std::time::Instant::now();
 for i in 0..n{ let c=&mut calls[i&31]; let mut r=Room::new(c,&mut head); std::hint::black_box(d.on_datagram(&tables,0,a,&mut r)); c[mf]=b'7';c[mf+1]=b'0'; }
 println!("{:.1} ns",t.elapsed().as_nanos() as f64/n as f64); }
