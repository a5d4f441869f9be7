# lsm-guest in whatever Packer builds: packer init . && packer build -var package=/path/lsm-guest_0.1.0_amd64.deb .
# Before Packer 1.7 without init, and lsm.pkr.hcl instead of the directory: plugins.pkr.hcl is for those that need plugins.
# Here with the QEMU builder, xorriso, and Debian's cloud image; the provisioners are the same for any other builder.
variable "package" {
  type = string
}

variable "image" {
  type    = string
  default = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2"
}

variable "checksum" {
  type    = string
  default = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
}

variable "output" {
  type    = string
  default = "output"
}

# "tcg" where there is no KVM.
variable "accelerator" {
  type    = string
  default = "kvm"
}

# Further ones of QEMU's.
variable "qemuargs" {
  type    = list(list(string))
  default = []
}

source "qemu" "debian" {
  iso_url          = var.image
  iso_checksum     = var.checksum
  disk_image       = true
  skip_resize_disk = true
  output_directory = var.output
  vm_name          = "lsm-vm.qcow2"
  accelerator      = var.accelerator
  headless         = true
  # The VM can be reached from this machine only.
  qemuargs = concat([["-netdev", "user,id=user.0,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"]], var.qemuargs)
  cd_label = "cidata"
  cd_files = ["${path.root}/seed/meta-data", "${path.root}/seed/user-data"]

  ssh_username = "packer"
  ssh_password = "packer"
  ssh_timeout  = "15m"
  # Last of all goes the user that Packer came in as.
  shutdown_command = "sudo sh -c 'rm /etc/sudoers.d/90-cloud-init-users; userdel --force --remove packer; shutdown -P now'"
}

build {
  sources = ["source.qemu.debian"]

  provisioner "file" {
    source      = var.package
    destination = "/tmp/${basename(var.package)}"
  }
  provisioner "file" {
    source      = "${path.root}/../provision"
    destination = "/tmp/provision"
  }
  provisioner "shell" {
    execute_command = "sudo {{ .Path }}"
    inline = [
      "cloud-init status --wait",
      "sh /tmp/provision /tmp/${basename(var.package)}",
      "rm /tmp/provision /tmp/${basename(var.package)}",
      # Each VM made of the image has its own first boot, machine ID and host keys.
      "cloud-init clean --logs",
      "rm -f /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d/50-cloud-init.conf",
      "truncate --size 0 /etc/machine-id",
    ]
  }
}
