#!/bin/sh
# Run by the machine from its disk as process 1: mounts, loads modules, runs the suite and tells its exit code.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin HOME=/root TMPDIR=/tmp LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o ptmxmode=666,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
for module in /vm/modules/*; do insmod "$module" || echo "berth-vm: $module cannot be loaded"; done
# As where there is a network: nobody is there to be asked.
echo nameserver 192.0.2.1 >/etc/resolv.conf
hostname berth-vm
ip link set lo up
ulimit -n 65536
echo "berth-vm: Linux $(uname -r), controllers $(cat /sys/fs/cgroup/cgroup.controllers)"
# What containers do to themselves is no news of the machine's.
dmesg -n 1
/vm/run
echo $? > /dev/ttyS1
poweroff -f
