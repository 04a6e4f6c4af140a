#!/usr/bin/env bash
# Runs a command as another machine would: other processors' arithmetic, threads, time zones, locales, permissions, homes.
#   bash tests/other_machines.sh SETTING COMMAND...   one setting
#   bash tests/other_machines.sh today COMMAND...     the day's: the gate takes one each day, in turn
#   bash tests/other_machines.sh list                 those that this processor can run
set -euo pipefail

# name, needed flag of the processor (- for none)
settings=(
  "openblas-haswell avx2" "aten-default -" "one-thread -" "time-zone -" "onednn-avx2 avx2" "locale -" "openblas-zen avx2"
  "umask -" "aten-avx2 avx2" "home-with-a-space -" "openblas-skylakex avx512bw" "aten-avx512 avx512bw" "onednn-avx512 avx512bw"
)
# By hand alone, for it takes half as long again: a loop that keeps one core busy.
by_hand=("busy-core -")

possible() {
  local setting name flag
  for setting in "$@"; do
    read -r name flag <<<"$setting"
    [ "$flag" = - ] || grep -qm1 "\b$flag\b" /proc/cpuinfo || continue
    echo "$name"
  done
}

mapfile -t daily < <(possible "${settings[@]}")
case ${1:?a setting, today, or list} in
  list) printf '%s\n' "${daily[@]}" "${by_hand[@]% -}"; exit ;;
  today) name=${daily[$(($(date -u +%s) / 86400 % ${#daily[@]}))]} ;;
  *) name=$1 ;;
esac
shift
echo "as another machine: $name" >&2

case $name in
  openblas-haswell) export OPENBLAS_CORETYPE=Haswell ;;
  openblas-zen) export OPENBLAS_CORETYPE=Zen ;;
  openblas-skylakex) export OPENBLAS_CORETYPE=SkylakeX ;;
  aten-default) export ATEN_CPU_CAPABILITY=default ;;
  aten-avx2) export ATEN_CPU_CAPABILITY=avx2 ;;
  aten-avx512) export ATEN_CPU_CAPABILITY=avx512 ;;
  onednn-avx2) export ONEDNN_MAX_CPU_ISA=AVX2 ;;
  onednn-avx512) export ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 ;;
  one-thread) export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 ;;
  time-zone) export TZ=Asia/Kathmandu ;;
  locale) export LC_ALL=C LANG=C ;;
  umask) umask 077 ;;
  home-with-a-space)
    HOME="$(mktemp -d)/a home"
    export HOME
    mkdir -p "$HOME" ;;
  busy-core)
    sh -c 'while :; do :; done' &
    trap "kill $!" EXIT
    "$@"
    exit ;;
  *) echo "no such setting: $name; there are: $(bash "$0" list | tr '\n' ' ')" >&2; exit 2 ;;
esac
exec "$@"
