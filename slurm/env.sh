# shellcheck shell=bash
# The site's part of a job: copy it, change it, and name the copy with `persia-hpc submit --env-file`.
# The job scripts source it on the first node; srun and mpiexec hand the variables on to the other nodes.

# --- modules and environment ------------------------------------------------------------------------------------
# module purge
# module load gcc openmpi cuda
# source "$HOME/persia-hpc/.venv-site/bin/activate"   # from `make setup MPI=site` with the same modules loaded

# --- MPI under srun ---------------------------------------------------------------------------------------------
# export SLURM_MPI_TYPE=pmix   # Open MPI;  pmi2: MPICH, also the embedded one. `srun --mpi=list` has what there is

# --- networks: only where the automatic choice is wrong (`ip -br address` has the names) ------------------------
# export UCX_NET_DEVICES=mlx5_0:1     # InfiniBand device and port that MPI uses
# export UCX_TLS=rc,sm,self           # transports; tcp,sm,self without InfiniBand
# export NCCL_SOCKET_IFNAME=ib0       # interface on which the trainers' NCCL finds its peers
# export NCCL_IB_HCA=mlx5             # its InfiniBand adapters;  NCCL_IB_DISABLE=1 without InfiniBand
# export OMPI_MCA_osc=ucx             # Open MPI 4.1 on several nodes if windows fail with MPI_ERR_WIN
# export OMPI_MCA_osc=^ucx            # Open MPI 5; over slow TCP, where it sends as much as it fetches, try also:
# export OMPI_MCA_btl_tcp_flags=send,put,inplace,need-ack,need-csum,hetero-rdma,rdma-remote-completion

# --- files --------------------------------------------------------------------------------------------------------
# On Lustre and other file systems without locks HDF5 refuses to open files. persia-hpc opens its own without them;
# this is for HDF5 in your transforms and scripts.
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE}
# Temporary files. A node's own disk is best, if the folder has the same name on all nodes (sites call it SLURM_TMPDIR,
# JOBSCRATCH, ...). Rings between ranks of one node lie in /dev/shm, wherever this is.
export TMPDIR=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}
