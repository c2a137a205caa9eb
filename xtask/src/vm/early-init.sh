#!/bin/busybox sh
# Run by the kernel from the initramfs: finds the disk and goes over to it. Containers need pivot_root, which refuses the
# initramfs.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for module in /modules/*; do $b insmod "$module" || echo "berth-vm: $module cannot be loaded"; done
$b mount -t ext4 /dev/vda /disk || { echo "berth-vm: the disk cannot be mounted"; $b poweroff -f; }
$b umount /proc
$b mount --move /dev /disk/dev
exec $b switch_root /disk /vm/init
