#!/bin/bash
# The first process of a virtual host; virtual_hosts.py starts it in namespaces of its own.
# Gives the host a private root (an overlay: what it writes dies with it), keys, and an ssh server.
set -eu
name=$1 state=$2 others=$2/others
hostname "$name"
mount --make-rprivate /
top=$state/$name.fs
mkdir -p "$top"
mount -t tmpfs -o size=8g "$name" "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay "$name" -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
root=$top/root
count=0
while read -r folder; do # what is needed and lies on a file system of its own: private here, too
    count=$((count + 1))
    mkdir -p "$root$folder" "$top/upper$count" "$top/work$count"
    private=lowerdir=$folder,upperdir=$top/upper$count,workdir=$top/work$count
    mount -t overlay "$name$count" -o "$private" "$root$folder"
done < "$others"
mkdir -p "$root$state/shared"
mount --bind "$state/shared" "$root$state/shared"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=4g shm "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs run "$root/run"
mkdir -p "$root/run/sshd" "$root/root/.ssh"
cp "$state/hosts" "$root/etc/hosts"
echo "$name" > "$root/etc/hostname"
: > "$root/etc/resolv.conf" # unknown names fail at once
chmod 700 "$root/root" "$root/root/.ssh"
cp "$state/user" "$root/root/.ssh/id_ed25519"
cp "$state/user.pub" "$root/root/.ssh/authorized_keys"
cp "$state/known_hosts" "$root/root/.ssh/known_hosts"
echo OMP_NUM_THREADS=1 > "$root/root/.deepspeed_env" # equal sums, however many cores there are
cp "$state/host" "$root/etc/ssh/virtual_host_key"
chmod 600 "$root/root/.ssh/"* "$root/etc/ssh/virtual_host_key"
cat > "$root/etc/ssh/virtual_sshd_config" <<C
HostKey /etc/ssh/virtual_host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 100:30:200
PidFile none
C
mkdir "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
cd /
/usr/sbin/sshd -D -e -f /etc/ssh/virtual_sshd_config &
for _ in $(seq 100); do # up once the port answers
    (: < "/dev/tcp/127.0.0.1/22") 2> /dev/null && break
    sleep 0.05
done
echo up
while :; do # reap orphans, as an init does
    wait -n 2> /dev/null || true
    sleep 1 &
    wait $! || true
done
